"""compile=true: equal to eager mode, no recompile after the warm-up, and a one-line error where it cannot work."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fovea_detr.build import build_model
from fovea_detr.compose import load_config
from fovea_detr.errors import ConfigError
from fovea_detr.model.detr import DETR
from fovea_detr.training import compiled
from fovea_detr.training.compiled import Compiled, compile_training, eager, refusal, warm_up_shapes
from tests.launch import ENVIRONMENT, only_folder, run, run_well
from tests.model.builders import random_batch, small_model

CPU = torch.device("cpu")
THIN = ("model.decoder_layers=1", "model.dropout=0")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))), reason="no C++ compiler on PATH"
)


@pytest.fixture(autouse=True, scope="module")
def forgotten() -> Iterator[None]:
    """torch.compile keeps its graphs and settings for the whole process."""
    with torch._dynamo.config.patch({}):
        yield
    torch._dynamo.reset()


def without_code(_backend: str) -> Callable[..., Any]:
    """For torch's lookup_backend: traced graphs run as they are, without a compiler."""
    return lambda graph, _inputs: graph.forward


@dataclass
class Traced:
    """A model before (a copy) and after compile_training, traced without generating code, and torch's generator."""

    model: DETR
    before: DETR
    done: Compiled
    random_states: tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    model = small_model("model.batch_norm=trainable", "model.dropout=0.5", "model.decoder_layers=1")
    before, random_state = copy.deepcopy(model), torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._dynamo, "lookup_backend", without_code)
        done = compile_training(model, 2, 64, CPU, "fp32")
        yield Traced(model, before, done, (random_state, torch.get_rng_state()))


def outcome(model: DETR, sizes: list[tuple[int, int]]) -> dict[str, Tensor]:
    """Logits, boxes, and every gradient by name."""
    predictions = model(random_batch(*sizes))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = predictions.logits.square().sum() + predictions.boxes_cxcywh.square().sum()
    gradients = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    named = {name: grad for name, grad in zip(trained, gradients, strict=True) if grad is not None}
    return {"logits": predictions.logits.detach(), "boxes": predictions.boxes_cxcywh.detach(), **named}


SHAPES = [[(128, 100), (60, 70)], [(64, 300), (60, 70)], [(190, 190), (1, 1)], [(512, 130), (60, 400)]]


@needs_compiler
@pytest.mark.slow
def test_compiled_equals_eager_at_every_shape_without_a_recompile() -> None:
    """Inductor's code, forward and backward. Gradients by their norm: a ReLU within rounding of 0 may differ."""
    model = small_model(*THIN)
    done = compile_training(model, 2, 512, CPU, "fp32")
    assert done.graphs == done.warm >= 2
    model.train()
    for sizes in SHAPES:
        ours = outcome(model, sizes)
        with eager():
            theirs = outcome(model, sizes)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            assert (ours[name] - theirs[name]).norm() <= 1e-3 * theirs[name].norm() + 1e-6, name
        for name in ("logits", "boxes"):
            assert torch.allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-5)
    assert done.counts() == {"compiled_graphs": done.warm, "recompiles": 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [("model.batch_norm=trainable",), ("model.position=learned", "model.pre_norm=true"), ("model.backbone=resnet18",)],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_graphs_hold_for_every_shape(
    monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], precision: str
) -> None:
    monkeypatch.setattr(torch._dynamo, "lookup_backend", without_code)
    model = small_model(*overrides)
    done = compile_training(model, 2, 512, CPU, precision)
    assert 2 <= done.graphs <= 3
    model.train()
    for sizes in SHAPES:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            model(random_batch(*sizes)).logits.sum().backward()
    assert done.counts()["recompiles"] == 0


def test_nothing_of_the_model_changes(traced: Traced) -> None:
    ours, theirs = traced.model.state_dict(), traced.before.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(parameter.grad is None for parameter in traced.model.parameters())
    assert not traced.model.training
    assert torch.equal(*traced.random_states)
    assert traced.done.counts() == {"compiled_graphs": 2, "recompiles": 0}


def test_evaluation_is_eager_and_keeps_its_own_padding(traced: Traced) -> None:
    batch, graphs = random_batch((100, 60), (64, 70)), traced.done.graphs
    with eager(), torch.no_grad():
        assert torch.equal(traced.model.eval()(batch).logits, traced.before.eval()(batch).logits)
    assert traced.done.graphs == graphs


def test_a_recompile_is_counted(traced: Traced) -> None:
    traced.model.train()(random_batch((64, 64)))  # a batch of one is another graph
    assert traced.done.counts()["recompiles"] >= 1


def test_runs_one_after_the_other_do_not_use_up_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Like the points of a local sweep, in one process."""
    monkeypatch.setattr(torch._dynamo, "lookup_backend", without_code)
    with torch._dynamo.config.patch(recompile_limit=2):
        for _ in range(3):
            assert compile_training(small_model(*THIN), 2, 64, CPU, "fp32").graphs >= 2


def test_training_images_are_padded_to_whole_groups_of_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = small_model().train(), []
    model.sides_multiple = 64
    monkeypatch.setattr(model.backbone, "forward", lambda images: seen.append(images) or torch.zeros(2, 128, 8, 8))
    batch = random_batch((128, 65), (60, 70))
    model(batch)
    model.eval()(batch)
    assert [tuple(images.shape[-2:]) for images in seen] == [(128, 128), (128, 70)]
    assert torch.equal(seen[0][..., :70], batch.images)
    assert not seen[0][..., 70:].any()


@pytest.mark.parametrize(("multiple", "longest"), [(64, 128), (128, 1333), (64, 1333), (64, 40)])
def test_warm_up_goes_from_the_smallest_to_the_largest(multiple: int, longest: int) -> None:
    shapes = warm_up_shapes(multiple, longest)
    largest = -(-longest // multiple) * multiple
    assert shapes[-1] == (largest, largest)
    assert all(side % multiple == 0 and 0 < side <= largest for shape in shapes for side in shape)
    assert len(shapes) == 1 or (shapes[0][0] != shapes[0][1] and min(shapes[0]) == multiple)
    assert {(width, height) for height, width in shapes} == set(shapes)


class CompilerMissing(Exception):
    pass


def chained(*messages: str) -> Exception:
    """Exceptions that each name the next as their cause."""
    first, *rest = [CompilerMissing(message) for message in messages]
    error = first
    for cause in rest:
        error.__cause__ = cause
        error = cause
    return first


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (chained("backend='inductor' raised:\nmore", "No working C++ compiler found"), "g++"),
        (
            chained("C++ compile error\n\nCommand:\nx\n\nOutput:\n/a.cpp:1: fatal error: Python.h: No such file"),
            "Python.h",
        ),
        (chained("Cannot find a working triton installation. Look\nhere"), "it needs a working triton"),
        (chained("Graph break: data-dependent\n  Explanation: x"), "Graph break: data-dependent"),
        (CompilerMissing(), "CompilerMissing"),
    ],
)
def test_a_compiler_error_is_one_line_with_the_cause(error: Exception, said: str) -> None:
    line = refusal(error)
    assert line.startswith("compile=true: ")
    assert "\n" not in line
    assert said in line
    assert line.endswith("use compile=false")


@pytest.mark.parametrize("break_it", ["backend", "graph"])
def test_a_failed_compilation_is_a_config_error(monkeypatch: pytest.MonkeyPatch, break_it: str) -> None:
    model = small_model(*THIN)
    if break_it == "backend":
        monkeypatch.setattr(Compiled, "backend", lambda *_: 1 / 0)
    else:
        monkeypatch.setattr(Compiled, "backend", lambda _, graph, __: graph.forward)
        forward = model.encoder.forward
        monkeypatch.setattr(model.encoder, "forward", lambda *a: (torch._dynamo.graph_break(), forward(*a))[1])
    with pytest.raises(ConfigError, match=r"compile=true: torch.compile does not work here") as caught:
        compile_training(model, 2, 128, CPU, "fp32")
    assert "\n" not in str(caught.value)


def test_an_error_of_the_model_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(*THIN)
    monkeypatch.setattr(model.encoder, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compile_training(model, 2, 128, CPU, "fp32")


def test_exhausted_memory_is_not_a_compiler_error(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def out_of_memory(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(compiled, "warm_up", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        compile_training(small_model(*THIN), 2, 128, CPU, "fp32")


def test_compile_without_training_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    with pytest.raises(ConfigError, match="compile=true compiles training"):
        load_config(["compile=true", "mode=eval", f"weights={tmp_path / 'weights.pt'}"])


def small_run(tmp_path: Path, *overrides: str) -> tuple[str, ...]:
    sizes = ("data.train_images=16", "data.val_images=4", "schedule.batch_size=4", "model.decoder_layers=1")
    sizes += ("model.batch_norm=frozen",)  # few kernels: each is a C++ compilation
    where = (f"data.cache={tmp_path / 'cache'}", f"runs={tmp_path}")
    return ("experiment=tiny", "schedule.epochs=2", "compile=true", *sizes, *where, *overrides)


@needs_compiler
@pytest.mark.slow
def test_a_run_shows_its_graphs_and_has_no_recompile(tmp_path: Path) -> None:
    out = run_well(*small_run(tmp_path))
    folder = only_folder(tmp_path)
    counts = [(line["timing"]["compiled_graphs"], line["timing"]["recompiles"]) for line in folder.history()]
    assert len(counts) == 2
    assert len(set(counts)) == 1
    assert counts[0][0] >= 2
    assert counts[0][1] == 0
    assert out.count(f"{counts[0][0]} compiled graphs (0 since the warm-up)") == 2
    model: dict[str, Tensor] = torch.load(folder.checkpoint_path)["model"]
    assert sorted(model) == sorted(build_model(load_config(list(small_run(tmp_path)))).state_dict())


@pytest.mark.slow
def test_no_compiler_is_one_line_before_any_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setitem(ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    done = run(*small_run(tmp_path, "device=cpu"))
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: compile=true: ")
    assert "g++" in lines[0]
    folder = only_folder(tmp_path)
    assert folder.state()["state"] == "failed"  # type: ignore[index]
    assert not folder.checkpoint_path.exists()
