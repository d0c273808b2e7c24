"""The worst batch is tried and leaves no trace; a run that does not fit ends with the batch size that does."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fovea_detr import build
from fovea_detr.compose import load_config
from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.readers import read_coco
from fovea_detr.data.transforms import train_transform
from fovea_detr.data.worst import WorstBatch
from fovea_detr.errors import OutOfMemoryError
from fovea_detr.machine import distributed
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.stop import StopFlag
from fovea_detr.training import preflight
from fovea_detr.training.console import Progress
from fovea_detr.training.loop import Work
from fovea_detr.training.optim import build_optimizer
from fovea_detr.training.state import Parts, Run
from tests.data.builders import write_coco
from tests.launch import ENVIRONMENT, ROOT, only_folder
from tests.training.test_resume import assert_equal_runs

CPU = torch.device("cpu")
Everything = tuple[Run, Parts, Work]


def everything(folder: Path, *overrides: str) -> Everything:
    """A run that stands before its first step, on 16 images."""
    config = load_config(["experiment=tiny", "data.num_classes=3", "model.dropout=0.1", *overrides])
    dataset = CocoDataset(
        read_coco(write_coco(folder / "data", [(64, 48), (48, 64)] * 8), "train"), train_transform("tiny")
    )
    run = Run(config, RunFolder(folder / "run"), StopFlag(), CPU)
    run.folder.path.mkdir()
    model = build.build_model(config)
    parts = Parts(model, model, build_optimizer(model, config.schedule))
    progress = Progress(run.folder, "base", epochs=1, speaks=True)
    loader = build.build_loader(config, dataset, CPU)
    return run, parts, Work(dataset, dataset, build.build_criterion(config), progress, "pycocotools", loader, loader)


def traces(parts: Parts) -> list[Tensor | bool | None]:
    """All that a trial could change, copied."""
    model = parts.model
    state = [*model.parameters(), *model.buffers()]
    flags = [module.training for module in model.modules()]
    gradients = [parameter.grad for parameter in model.parameters()]
    return [*(tensor.detach().clone() for tensor in state), *flags, *gradients, torch.get_rng_state()]


def assert_no_trace(parts: Parts, before: list[Tensor | bool | None]) -> None:
    for now, then in zip(traces(parts), before, strict=True):
        assert torch.equal(now, then) if isinstance(then, Tensor) and isinstance(now, Tensor) else now is then
    assert not parts.optimizer.state


@pytest.mark.parametrize("batch_norm", ["trainable", "frozen"])
@pytest.mark.parametrize("mode", [True, False])
def test_a_trial_leaves_no_trace(tmp_path: Path, capsys, batch_norm: str, mode: bool) -> None:
    run, parts, work = everything(tmp_path, f"model.batch_norm={batch_norm}")
    parts.model.train(mode)
    before = traces(parts)
    preflight.before_first_step(run, parts, work)
    assert_no_trace(parts, before)
    line = r"\[base\] worst batch: 8 x 128 x 128, 8 objects: peak memory \d+\.\d GiB of \d+\.\d GiB \(CPU\)\n"
    assert re.fullmatch(line, capsys.readouterr().out)
    assert run.peak_memory_bytes is not None
    assert run.peak_memory_bytes > 50 << 20


def test_a_trial_that_fails_leaves_no_trace_and_no_tensors(tmp_path: Path) -> None:
    run, parts, work = everything(tmp_path)
    tried = preflight.Trial(run, parts, work)
    before, held = traces(parts), bytes_held()
    with_a_hook = parts.model.get_parameter("box_head.layers.2.weight")
    handle = with_a_hook.register_hook(out_of_memory)
    assert tried.attempt_here(tried.worst(8)) == "CUDA out of memory. Tried"
    handle.remove()
    assert bytes_held() <= held + 4096
    assert_no_trace(parts, before)
    assert isinstance(tried.attempt_here(tried.worst(8)), int)


def test_a_try_that_ends_its_process_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some library that does not look at what malloc returns, or a control group out of memory."""
    run, parts, work = everything(tmp_path)
    step = preflight.Trial.step

    def fatal(self: preflight.Trial, worst: WorstBatch) -> None:
        if len(worst.objects) > 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        step(self, worst)

    monkeypatch.setattr(preflight.Trial, "step", fatal)
    before = traces(parts)
    with pytest.raises(OutOfMemoryError, match=r"schedule\.batch_size=3 fits \(tried\)"):
        preflight.before_first_step(run, parts, work)
    assert_no_trace(parts, before)


def test_the_peak_is_that_of_this_process(tmp_path: Path) -> None:
    """A copy has fewer pages of files in memory; that is made up for."""
    tried = preflight.Trial(*everything(tmp_path))
    tried.attempt_here(tried.worst(8))
    child, here = tried.attempt(tried.worst(8)), tried.attempt_here(tried.worst(8))
    assert isinstance(child, int)
    assert isinstance(here, int)
    assert child == pytest.approx(here, rel=0.15)


def out_of_memory(_gradient: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried\nmuch")


def bytes_held() -> int:
    gc.collect()
    return sum(item.nbytes for item in gc.get_objects() if type(item) in (Tensor, torch.nn.Parameter))


def test_other_errors_are_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, parts, work = everything(tmp_path)
    monkeypatch.setattr(parts.model, "forward", lambda _batch: torch.ones(2) @ torch.ones(3))
    before = traces(parts)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        preflight.before_first_step(run, parts, work)
    assert_no_trace(parts, before)
    assert distributed._is_alone is False


def test_broken_weights_are_left_to_the_first_step(tmp_path: Path) -> None:
    run, parts, work = everything(tmp_path)
    parts.model.get_parameter("box_head.layers.2.bias").data.fill_(float("nan"))
    preflight.before_first_step(run, parts, work)
    assert run.peak_memory_bytes is not None


def test_what_the_optimizer_will_hold_is_held_in_the_trial(tmp_path: Path) -> None:
    _, parts, _ = everything(tmp_path)
    size = sum(p.nbytes for p in parts.model.parameters() if p.requires_grad)
    assert sum(t.nbytes for t in preflight.still_to_come(parts, CPU)) == 2 * size
    assert sum(t.nbytes for t in preflight.still_to_come(replace(parts, wrapped=torch.nn.Identity()), CPU)) == 3 * size
    for parameter in parts.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    parts.optimizer.step()
    assert preflight.still_to_come(parts, CPU) == [], "a resumed run has them"


@pytest.mark.parametrize(
    ("limits", "world_says"),
    [
        ([5], "schedule.batch_size=5 fits (tried), a total batch of 5 instead of 8; to keep 8, take "
         "schedule.batch_size=4 and 2 processes (cluster.gpus, cluster.nodes)"),
        ([7], "schedule.batch_size=7 fits"),
        ([1], "schedule.batch_size=1 fits"),
        ([0], "not even one image does (no memory); choose among precision=bf16, a smaller model"),
        ([9, 3], "the memory of rank 1"),
        ([9, 3], "schedule.batch_size=3 fits (tried), a total batch of 6 instead of 16; to keep 16, take "
         "schedule.batch_size=2 and 8 processes"),
    ],
)  # fmt: skip
def test_the_largest_batch_that_fits_on_every_rank_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: list[int], world_says: str
) -> None:
    run, parts, work = everything(tmp_path)
    run.total_batch_size = 8 * len(limits)
    size_of_try: list[int] = []

    def gather(value: object) -> list[object]:
        if value is not None:
            return [value] * len(limits)
        return [1 if size_of_try[-1] <= limit else "no memory" for limit in limits]

    monkeypatch.setattr(preflight.Trial, "attempt", lambda _, worst: size_of_try.append(len(worst.objects)))
    monkeypatch.setattr(distributed, "gather", gather)
    with pytest.raises(OutOfMemoryError) as caught:
        preflight.before_first_step(run, parts, work)
    assert "the worst batch (8 x 128 x 128, 8 objects) does not fit into the memory" in str(caught.value)
    assert world_says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_few_images_are_left_to_the_first_epoch(tmp_path: Path) -> None:
    run, parts, work = everything(tmp_path, "schedule.batch_size=17")
    preflight.before_first_step(run, parts, work)
    assert run.peak_memory_bytes is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_tensors_and_generators_are_left_as_they_were(tmp_path: Path) -> None:
    run, parts, work = everything(tmp_path, "device=cuda")
    device = run.device = torch.device("cuda", 0)
    parts.model.to(device)
    work.criterion.to(device)
    before, generators = traces(parts), torch.cuda.get_rng_state(device)
    preflight.before_first_step(run, parts, work)
    assert_no_trace(parts, before)
    assert torch.equal(torch.cuda.get_rng_state(device), generators)
    assert run.peak_memory_bytes is not None
    assert run.peak_memory_bytes > torch.cuda.memory_allocated(device)


# ---- real runs -------------------------------------------------------------------------------------------------------

SHORT = ("experiment=tiny", "schedule.epochs=1", "model.dropout=0.1", "data.val_images=8", "evaluation.batch_size=4")
WITHOUT = "from fovea_detr import trial; preflight.before_first_step = lambda *everything: None"
LIMITED = """
import os, re, resource
from pathlib import Path
import torch.distributed, torchvision, fovea_detr.experiment
if os.environ.get("RANK", "{rank}") == "{rank}":
    now = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (now + ({mib} << 20), resource.RLIM_INFINITY))
"""
BROKEN_LATER = """
import torch
from fovea_detr.training import loop
train_step, steps = loop.train_step, []
def broken(*arguments):
    steps.append(1)
    return train_step(*arguments) if len(steps) < 3 else torch.empty(1 << 50)
loop.train_step = broken
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
    env = ENVIRONMENT | {"MALLOC_ARENA_MAX": "1"}  # another one reserves 64 MiB of addresses, which LIMITED counts
    return subprocess.run(line, cwd=ROOT, env=env, text=True, capture_output=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("batch_norm", ["trainable", "frozen"])
def test_a_run_equals_one_without_a_trial(tmp_path: Path, ranks: int, batch_norm: str) -> None:
    arguments = (*SHORT, "data.train_images=64", f"model.batch_norm={batch_norm}")
    for first, name in (("", "with"), (WITHOUT, "without")):
        done = run_after(first, tmp_path / name, *arguments, ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert ("worst batch: " in done.stdout) == (name == "with")
    one, other = (only_folder(tmp_path / name / "runs") for name in ("with", "without"))
    assert_equal_runs(one, other)
    assert one.result()["peak_memory_bytes"] > 100 << 20  # type: ignore[index]


@pytest.mark.slow
def test_out_of_memory_ends_before_the_first_step_and_the_named_batch_fits(tmp_path: Path) -> None:
    arguments = (*SHORT, "data.train_images=256")
    first = LIMITED.format(rank=0, mib=600)
    done = run_after(first, tmp_path / "too_large", *arguments, "schedule.batch_size=256")
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert line.startswith("error: the worst batch (256 x 128 x 128, ")
    (named,) = re.findall(r"schedule\.batch_size=(\d+) fits \(tried\), a total batch of \d+ instead of 256", line)
    assert 1 <= int(named) < 256
    folder = only_folder(tmp_path / "too_large" / "runs")
    state = folder.state() or {}
    assert (state["state"], state["kind"]) == ("failed", "OutOfMemoryError")
    assert state["reason"] == line.removeprefix("error: ")
    assert not folder.checkpoint_path.exists()
    done = run_after(first, tmp_path / "fits", *arguments, f"schedule.batch_size={named}")
    assert done.returncode == 0, done.stderr
    assert f"worst batch: {named} x 128 x 128" in done.stdout


@pytest.mark.slow
def test_one_rank_without_memory_ends_all_with_the_same_line(tmp_path: Path) -> None:
    batch = ("data.train_images=512", "schedule.batch_size=256")
    done = run_after(LIMITED.format(rank=1, mib=350), tmp_path / "run", *SHORT, *batch, ranks=2)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2, done.stderr
    assert lines[0] == lines[1]
    assert "does not fit into the memory of rank 1" in lines[0]
    assert "instead of 512" in lines[0]


@pytest.mark.slow
def test_out_of_memory_later_names_step_rank_and_images(tmp_path: Path) -> None:
    done = run_after(BROKEN_LATER, tmp_path / "run", *SHORT, "data.train_images=64")
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert re.match(r"error: step 2, rank 0, images \d+(, \d+){7}: out of memory, although the worst batch", line)
    assert (only_folder(tmp_path / "run" / "runs").state() or {})["kind"] == "OutOfMemoryError"
