"""What a run has taken: rates and cost over epochs, processes and evaluations, by a clock that the test sets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fovea_detr.compose import load_config
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.stop import StopFlag
from fovea_detr.training import state
from fovea_detr.training.state import Parts, Run

METRICS = {"AP": 0.4, "AP50": 0.6}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time as the test sets it: `clock.now`."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(state, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def begin(folder: Path, clock: SimpleNamespace, gpus: int) -> tuple[Run, Parts]:
    """A process that takes 50 s to start up, and resumes if there is something to resume."""
    model = nn.Linear(1, 1)
    parts = Parts(model, model, torch.optim.AdamW(model.parameters()))
    run = Run(load_config(["experiment=tiny"]), RunFolder(folder), StopFlag(), torch.device("cpu"))
    run.gpus = gpus
    run.resume(parts)
    clock.now += 50.0
    run.start_clock()
    return run, parts


def train(run: Run, parts: Parts, clock: SimpleNamespace, steps: int) -> None:
    """Steps of 2 s and 8 images each."""
    run.position.batches_done += steps
    clock.now += 2.0 * steps
    run.save(parts)


def close(run: Run, parts: Parts, clock: SimpleNamespace, evaluation: float | None) -> None:
    clock.now += evaluation or 0.0
    timing = {} if evaluation is None else {"evaluation_seconds": evaluation}
    metrics = METRICS if evaluation is not None else {}
    run.commit({"epoch": run.epoch + 1, "steps": 10 * (run.epoch + 1), **metrics, "timing": timing}, parts)


@pytest.mark.parametrize("gpus", [0, 4])
def test_rates_and_cost_after_a_resume_with_evaluations_and_start_up_apart(
    tmp_path: Path, clock: SimpleNamespace, gpus: int
) -> None:
    run, parts = begin(tmp_path, clock, gpus)
    train(run, parts, clock, steps=10)
    close(run, parts, clock, evaluation=30.0)
    train(run, parts, clock, steps=6)
    clock.now += 1000.0  # steps that are lost, and the time until somebody starts it again
    run, parts = begin(tmp_path, clock, gpus)
    assert run.resumed
    train(run, parts, clock, steps=4)
    close(run, parts, clock, evaluation=None)
    train(run, parts, clock, steps=10)
    clock.now += 7.0  # an evaluation that is killed
    run, parts = begin(tmp_path, clock, gpus)
    close(run, parts, clock, evaluation=40.0)
    timings = [line["timing"] for line in run.folder.history()]
    assert [timing["seconds"] for timing in timings] == [50.0, 20.0, 60.0]
    assert [timing["images_per_second"] for timing in timings] == [4.0] * 3
    assert [timing["total_seconds"] for timing in timings] == [50.0, 70.0, 130.0]
    assert [timing["gpu_hours"] * 3600 for timing in timings] == pytest.approx([gpus * s for s in (50, 70, 130)])
    outcome = run.outcome()
    assert outcome["images_per_second"] == 4.0
    assert outcome["gpu_hours"] * 3600 == pytest.approx(gpus * 130)
    assert outcome["minutes"] * 60 == pytest.approx(130)
    assert outcome["starts"] == 3


def test_a_history_without_gpu_hours_is_carried_on(tmp_path: Path, clock: SimpleNamespace) -> None:
    run, parts = begin(tmp_path, clock, gpus=2)
    train(run, parts, clock, steps=10)
    close(run, parts, clock, evaluation=30.0)
    del run.position.history[-1]["timing"]["gpu_hours"]
    train(run, parts, clock, steps=10)
    close(run, parts, clock, evaluation=30.0)
    assert run.outcome()["gpu_hours"] * 3600 == pytest.approx(200)
