"""Rates and cost of a run over epochs, processes and evaluations, with a clock that the test sets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fovea_detr.config.schema import Checkpoint
from fovea_detr.runs.folder import RunFolder
from fovea_detr.training import saver
from fovea_detr.training.saver import Saver
from fovea_detr.training.state import TrainState

METRICS = {"AP": 0.4, "AP50": 0.6}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that the test sets: `clock.now`."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(saver, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def begin(folder: Path, clock: SimpleNamespace, gpus: int) -> Saver:
    """A process that starts up in 50 s, and resumes if there is a checkpoint."""
    model = nn.Linear(1, 1)
    state = TrainState(model, torch.optim.AdamW(model.parameters()), total_batch_size=8)
    saver = Saver(RunFolder(folder), state, Checkpoint(), gpus=gpus)
    saver.restore()
    clock.now += 50.0
    saver.start_clock()
    return saver


def train(saver: Saver, clock: SimpleNamespace, steps: int) -> None:
    """Steps of 2 s and 8 images each."""
    saver.state.batches_done += steps
    clock.now += 2.0 * steps
    saver.save()


def close(saver: Saver, clock: SimpleNamespace, evaluation: float | None) -> None:
    clock.now += evaluation or 0.0
    timing = {} if evaluation is None else {"evaluation_seconds": evaluation}
    metrics = METRICS if evaluation is not None else {}
    epoch = saver.state.epoch + 1
    saver.commit({"epoch": epoch, "steps": 10 * epoch, **metrics, "timing": timing})


@pytest.mark.parametrize("gpus", [0, 4])
def test_rates_and_cost_after_a_resume_with_evaluations_and_start_up_apart(
    tmp_path: Path, clock: SimpleNamespace, gpus: int
) -> None:
    saver = begin(tmp_path, clock, gpus)
    train(saver, clock, steps=10)
    close(saver, clock, evaluation=30.0)
    train(saver, clock, steps=6)
    clock.now += 1000.0  # lost steps, and the time until the next start
    saver = begin(tmp_path, clock, gpus)
    assert saver.state.resumed
    train(saver, clock, steps=4)
    close(saver, clock, evaluation=None)
    train(saver, clock, steps=10)
    clock.now += 7.0  # an evaluation that is killed
    saver = begin(tmp_path, clock, gpus)
    close(saver, clock, evaluation=40.0)
    timings = [line["timing"] for line in saver.folder.history()]
    assert [timing["seconds"] for timing in timings] == [50.0, 20.0, 60.0]
    assert [timing["images_per_second"] for timing in timings] == [4.0] * 3
    assert [timing["total_seconds"] for timing in timings] == [50.0, 70.0, 130.0]
    assert [timing["gpu_hours"] * 3600 for timing in timings] == pytest.approx([gpus * s for s in (50, 70, 130)])
    outcome = saver.state.outcome()
    assert outcome["images_per_second"] == 4.0
    assert outcome["gpu_hours"] * 3600 == pytest.approx(gpus * 130)
    assert outcome["minutes"] * 60 == pytest.approx(130)
    assert outcome["starts"] == 3


def test_a_checkpoint_of_format_1_is_read(tmp_path: Path) -> None:
    """The layout, written out: files of earlier versions must stay readable."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    position = {
        "epoch": 1,
        "batches_done": 3,
        "sums": {"loss": 7.5},
        "history": [{"epoch": 1, "steps": 10, "timing": {"seconds": 50.0}}],
        "train_seconds": 6.0,
        "total_seconds": 50.0,
        "total_batch_size": 8,
        "starts": 2,
    }
    content = {"format": 1, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "position": position}
    torch.save(content, tmp_path / "checkpoint.pt")
    other = nn.Linear(1, 1)
    state = TrainState(other, torch.optim.AdamW(other.parameters()), total_batch_size=8)
    saver = Saver(RunFolder(tmp_path), state, Checkpoint(), gpus=0)
    saver.restore()
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))
    assert {name: getattr(state, name) for name in position} == {**position, "starts": 3}
    assert saver.folder.history() == position["history"]
    saver.save()
    assert torch.load(tmp_path / "checkpoint.pt").keys() == content.keys()
    assert list(torch.load(tmp_path / "checkpoint.pt")["position"]) == list(position)


def test_a_history_without_gpu_hours_is_continued(tmp_path: Path, clock: SimpleNamespace) -> None:
    saver = begin(tmp_path, clock, gpus=2)
    train(saver, clock, steps=10)
    close(saver, clock, evaluation=30.0)
    del saver.state.history[-1]["timing"]["gpu_hours"]
    train(saver, clock, steps=10)
    close(saver, clock, evaluation=30.0)
    assert saver.state.outcome()["gpu_hours"] * 3600 == pytest.approx(200)
