"""The preflight runs the worst batch and restores everything; a batch that does not fit ends the run in one line."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fovea_detr import build
from fovea_detr.compose import load_config
from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.readers import read_coco
from fovea_detr.data.transforms import train_transform
from fovea_detr.errors import OutOfMemoryError
from fovea_detr.machine import distributed, memory
from fovea_detr.runs.folder import RunFolder
from fovea_detr.training import preflight
from fovea_detr.training.console import Console
from fovea_detr.training.loop import Trainer
from fovea_detr.training.optim import build_optimizer
from fovea_detr.training.preflight import Preflight
from fovea_detr.training.split import Split
from fovea_detr.training.state import TrainState
from tests.data.builders import write_coco
from tests.launch import ENVIRONMENT, ROOT, only_folder
from tests.training.test_resume import assert_equal_runs

CPU = torch.device("cpu")


def new_trainer(root: Path, *overrides: str, device: torch.device = CPU) -> Trainer:
    """A run before its first step, on 16 images."""
    config = load_config(["experiment=tiny", "data.num_classes=3", "model.dropout=0.1", *overrides])
    split = read_coco(write_coco(root / "data", [(64, 48), (48, 64)] * 8), "train")
    dataset = CocoDataset(split, train_transform("tiny"))
    folder = RunFolder(root / "run")
    folder.path.mkdir()
    model = build.build_model(config).to(device)
    size = config.schedule.batch_size
    state = TrainState(model, build_optimizer(model, config.schedule), total_batch_size=size)
    console, criterion = Console(folder, "base", epochs=1, enabled=True), build.build_criterion(config).to(device)
    train = Split(dataset, build.build_loader(config, dataset, device), config)
    return Trainer(config, folder, device, state, criterion, console, train=train)


def snapshot(state: TrainState) -> list[Tensor | bool | None]:
    """A copy of everything that a preflight could change."""
    model = state.model
    tensors = [*model.parameters(), *model.buffers()]
    flags = [module.training for module in model.modules()]
    gradients = [parameter.grad for parameter in model.parameters()]
    return [*(tensor.detach().clone() for tensor in tensors), *flags, *gradients, torch.get_rng_state()]


def assert_unchanged(state: TrainState, before: list[Tensor | bool | None]) -> None:
    for now, then in zip(snapshot(state), before, strict=True):
        assert torch.equal(now, then) if isinstance(then, Tensor) and isinstance(now, Tensor) else now is then
    assert not state.optimizer.state


@pytest.mark.parametrize("batch_norm", ["trainable", "frozen"])
@pytest.mark.parametrize("mode", [True, False])
def test_everything_is_restored(tmp_path: Path, capsys, batch_norm: str, mode: bool) -> None:
    trainer = new_trainer(tmp_path, f"model.batch_norm={batch_norm}")
    trainer.state.model.train(mode)
    before = snapshot(trainer.state)
    preflight.before_first_step(trainer)
    assert_unchanged(trainer.state, before)
    line = r"\[base\] worst batch: 8 x 128 x 128, 8 objects: peak memory \d+\.\d GiB \(CPU\)\n"
    assert re.fullmatch(line, capsys.readouterr().out)
    assert trainer.peak_memory_bytes is not None
    assert trainer.peak_memory_bytes > 50 << 20


def test_a_failed_attempt_restores_everything_and_the_next_one_keeps_no_tensors(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path)
    tried = Preflight(trainer)
    before, held = snapshot(trainer.state), bytes_held()
    with_a_hook = trainer.state.model.get_parameter("box_head.layers.2.weight")
    handle = with_a_hook.register_hook(out_of_memory)
    assert tried.attempt(tried.worst(8)) == "CUDA out of memory. Tried"
    handle.remove()
    assert_unchanged(trainer.state, before)
    assert isinstance(tried.attempt(tried.worst(8)), int)
    assert bytes_held() <= held + 4096
    assert_unchanged(trainer.state, before)


def out_of_memory(_gradient: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried\nmuch")


def bytes_held() -> int:
    gc.collect()
    return sum(item.nbytes for item in gc.get_objects() if type(item) in (Tensor, torch.nn.Parameter))


@pytest.mark.parametrize(("outcomes", "of_rank"), [(["no memory"], ""), ([1, "no memory"], " of rank 1")])
def test_on_a_cpu_a_batch_that_does_not_fit_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcomes: list[int | str], of_rank: str
) -> None:
    trainer = new_trainer(tmp_path)
    monkeypatch.setattr(distributed, "gather", lambda _: outcomes)
    with pytest.raises(OutOfMemoryError) as caught:
        preflight.before_first_step(trainer)
    assert str(caught.value) == (
        f"the worst batch (8 x 128 x 128, 8 objects) does not fit into the memory{of_rank} (no memory): "
        "lower schedule.batch_size"
    )


def test_other_errors_are_raised_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = new_trainer(tmp_path)
    monkeypatch.setattr(trainer.state.model, "forward", lambda _batch: torch.ones(2) @ torch.ones(3))
    before = snapshot(trainer.state)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        preflight.before_first_step(trainer)
    assert_unchanged(trainer.state, before)
    assert distributed._is_alone is False


def test_broken_weights_are_left_to_the_first_step(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path)
    trainer.state.model.get_parameter("box_head.layers.2.bias").data.fill_(float("nan"))
    preflight.before_first_step(trainer)
    assert trainer.peak_memory_bytes is not None


def test_the_memory_of_the_optimizer_is_included(tmp_path: Path) -> None:
    state = new_trainer(tmp_path).state
    size = sum(p.nbytes for p in state.model.parameters() if p.requires_grad)
    assert sum(t.nbytes for t in preflight.optimizer_memory(state.optimizer)) == 2 * size
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    assert preflight.optimizer_memory(state.optimizer) == [], "a resumed run has allocated it"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ([5], "schedule.batch_size=5 fits (tried), a total batch of 5 instead of 8; to keep 8, take "
         "schedule.batch_size=4 and 2 processes (cluster.gpus, cluster.nodes)"),
        ([7], "schedule.batch_size=7 fits"),
        ([1], "schedule.batch_size=1 fits"),
        ([0], "not even one image does (no memory); choose among precision=bf16, a smaller model"),
        ([9, 3], "the GPU of rank 1 (11.2 GiB)"),
        ([9, 3], "schedule.batch_size=3 fits (tried), a total batch of 6 instead of 16; to keep 16, take "
         "schedule.batch_size=2 and 8 processes"),
    ],
)  # fmt: skip
def test_the_largest_batch_that_fits_on_every_gpu_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: list[int], message: str
) -> None:
    trainer = new_trainer(tmp_path)
    trainer.device, trainer.state.total_batch_size = torch.device("cuda"), 8 * len(limits)
    size_of_attempt: list[int] = []

    def gather(value: object) -> list[object]:
        if value is not None:
            return [value] * len(limits)
        return [1 if size_of_attempt[-1] <= limit else "no memory" for limit in limits]

    monkeypatch.setattr(Preflight, "choose_for_gpu", lambda _: None)
    monkeypatch.setattr(Preflight, "attempt", lambda _, worst: size_of_attempt.append(len(worst.objects)))
    monkeypatch.setattr(memory, "gpu_bytes", lambda _: 12_025_908_429)
    monkeypatch.setattr(distributed, "gather", gather)
    with pytest.raises(OutOfMemoryError) as caught:
        preflight.before_first_step(trainer)
    assert "the worst batch (8 x 128 x 128, 8 objects) does not fit into the GPU" in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_few_images_are_left_to_the_first_epoch(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, "schedule.batch_size=17")
    preflight.before_first_step(trainer)
    assert trainer.peak_memory_bytes is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_tensors_and_generators_are_restored(tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    trainer = new_trainer(tmp_path, "device=cuda", device=device)
    before, generators = snapshot(trainer.state), torch.cuda.get_rng_state(device)
    preflight.before_first_step(trainer)
    assert_unchanged(trainer.state, before)
    assert torch.equal(torch.cuda.get_rng_state(device), generators)
    assert trainer.peak_memory_bytes is not None
    assert trainer.peak_memory_bytes > torch.cuda.memory_allocated(device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_failed_attempt_frees_its_memory(tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    trainer = new_trainer(tmp_path, "device=cuda", device=device)
    tried = Preflight(trainer)
    tried.attempt(tried.worst(8))
    held = torch.cuda.memory_allocated(device)
    trainer.state.model.get_parameter("box_head.layers.2.weight").register_hook(out_of_memory)
    assert tried.attempt(tried.worst(8)) == "CUDA out of memory. Tried"
    assert torch.cuda.memory_allocated(device) <= held + (1 << 20)


# ---- real runs -------------------------------------------------------------------------------------------------------

SHORT = ("experiment=tiny", "schedule.epochs=1", "model.dropout=0.1", "data.val_images=8", "evaluation.batch_size=4")
WITHOUT = "from fovea_detr.training import preflight; preflight.before_first_step = lambda trainer: None"
EXHAUSTED = """
import os, torch
from fovea_detr.training.preflight import Preflight
if os.environ.get("RANK", "{rank}") == "{rank}":
    Preflight.step = lambda *arguments: torch.empty(1 << 50)
"""
EXHAUSTED_LATER = """
import torch
from fovea_detr.training.loop import Trainer
train_step, steps = Trainer.train_step, []
def broken(*arguments):
    steps.append(1)
    return train_step(*arguments) if len(steps) < 3 else torch.empty(1 << 50)
Trainer.train_step = broken
"""


def run_after(first: str, folder: Path, *overrides: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """`run.py` in processes that have executed `first`."""
    script = folder / "script.py"
    folder.mkdir(exist_ok=True)
    start = f"import runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\n{first}\n"
    script.write_text(f"{start}\nrunpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')\n")
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    line = [sys.executable, *torchrun, str(script), *overrides, f"runs={folder / 'runs'}"]
    line += [f"data.cache={folder.parent / 'cache'}"]
    return subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, text=True, capture_output=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("batch_norm", ["trainable", "frozen"])
def test_a_run_equals_one_without_a_preflight(tmp_path: Path, ranks: int, batch_norm: str) -> None:
    arguments = (*SHORT, "data.train_images=64", f"model.batch_norm={batch_norm}")
    for first, name in (("", "with"), (WITHOUT, "without")):
        done = run_after(first, tmp_path / name, *arguments, ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert ("worst batch: " in done.stdout) == (name == "with")
    one, other = (only_folder(tmp_path / name / "runs") for name in ("with", "without"))
    assert_equal_runs(one, other)
    assert one.result()["peak_memory_bytes"] > 100 << 20  # type: ignore[index]


@pytest.mark.slow
def test_exhausted_memory_ends_the_run_before_the_first_step(tmp_path: Path) -> None:
    done = run_after(EXHAUSTED.format(rank=0), tmp_path / "run", *SHORT, "data.train_images=64")
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert line.startswith("error: the worst batch (8 x 128 x 128, ")
    folder = only_folder(tmp_path / "run" / "runs")
    state = folder.state() or {}
    assert (state["state"], state["kind"]) == ("failed", "OutOfMemoryError")
    assert state["reason"] == line.removeprefix("error: ")
    assert not folder.checkpoint_path.exists()


@pytest.mark.slow
def test_exhausted_memory_of_one_rank_ends_all_with_the_same_line(tmp_path: Path) -> None:
    done = run_after(EXHAUSTED.format(rank=1), tmp_path / "run", *SHORT, "data.train_images=64", ranks=2)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2, done.stderr
    assert lines[0] == lines[1]
    assert "does not fit into the memory of rank 1" in lines[0]


@pytest.mark.slow
def test_exhausted_memory_later_names_step_rank_and_images(tmp_path: Path) -> None:
    done = run_after(EXHAUSTED_LATER, tmp_path / "run", *SHORT, "data.train_images=64")
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert re.match(r"error: step 2, rank 0, images \d+(, \d+){7}: out of memory, although the largest batch", line)
    assert (only_folder(tmp_path / "run" / "runs").state() or {})["kind"] == "OutOfMemoryError"
