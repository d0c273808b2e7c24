"""The output of a run: plain lines without a terminal, a progress bar in one, a tracker only if configured."""

from __future__ import annotations

import io
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fovea_detr.runs.folder import RunFolder
from fovea_detr.training import console
from fovea_detr.training.console import Console

LOSSES = {"loss": 7.5, "loss_classification": 0.5, "loss_l1": 0.25, "loss_giou": 0.75}
TIMING = {"seconds": 180.0, "evaluation_seconds": 20.0, "images_per_second": 1.0, "gpu_hours": 0.0}
LINE = {"epoch": 1, "steps": 10, **LOSSES, "AP": 0.41, "AP50": 0.622, "timing": TIMING}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that the test sets: `clock.now`."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def run_steps(
    output: Console,
    clock: SimpleNamespace,
    steps: int,
    seconds: float,
    done: int = 0,
    epoch: int = 0,
    batches: int = 10,
) -> None:
    output.start_epoch(epoch, batches, done)
    for _ in range(steps):
        clock.now += seconds
        output.step_done(LOSSES, images=16)


def started(folder: RunFolder, history: list[dict[str, Any]] = [], *, epochs: int = 3, enabled: bool = False, **more):  # noqa: B006
    """A Console that has been started; `more`: seconds, evaluate_every, gpus, name."""
    output = Console(folder, more.pop("name", "base"), epochs, enabled=enabled)
    output.start(history, **{"seconds": 0.0, "evaluate_every": 1, "gpus": 0, **more})
    return output


def test_plain_lines_without_a_terminal(tmp_path, capsys, clock):
    output = started(RunFolder(tmp_path), name="seed=1", enabled=True)
    run_steps(output, clock, steps=4, seconds=16.0)
    clock.now += 20.0  # the evaluation
    output.epoch_done(LINE)
    out, error = capsys.readouterr()
    step = "loss 7.500, classification 0.500, l1 0.250, giou 0.750, 1.0 images/s"
    assert out.splitlines() == [
        f"[seed=1] epoch 1/3 step 2/10: {step}, 0:07:28 and 3 evaluations left",
        f"[seed=1] epoch 1/3 step 4/10: {step}, 0:06:56 and 3 evaluations left",
        f"[seed=1] epoch 1/3: {step.replace(', 1.0', ', AP 41.0, AP50 62.2, 1.0')}, 180 s, 0:06:00 left",
    ]
    assert error == ""
    assert "\r" not in out
    logged = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in logged] == [line.removeprefix("[seed=1] ") for line in out.splitlines()]


def test_there_are_no_losses_before_the_first_report(tmp_path, capsys, clock):
    output = started(RunFolder(tmp_path), enabled=True)
    output.start_epoch(0, batches=10, done=0)
    clock.now += 32.0
    output.step_done({}, images=16)
    assert "epoch 1/3 step 1/10: 0.5 images/s, " in capsys.readouterr().out


@pytest.mark.parametrize(("done", "seconds", "left"), [(0, 2.0, "0:00:56"), (5, 2.0, "0:00:46"), (0, 360.0, "2:48:00")])
def test_in_the_first_epoch_the_rate_is_that_of_this_process(tmp_path, clock, done, seconds, left):
    output = started(RunFolder(tmp_path))
    run_steps(output, clock, steps=2, seconds=seconds, done=done)
    assert output.time_left(0, output.done) == f"{left} and 3 evaluations left"
    assert output.rate() == pytest.approx(16 / seconds)


@pytest.mark.parametrize(
    ("every", "epochs", "evaluations"), [(1, 5, 3), (2, 5, 2), (3, 5, 2), (4, 5, 2), (3, 6, 2), (10, 5, 1)]
)
def test_time_left_after_a_resume_comes_from_the_history_with_the_evaluations(
    tmp_path, clock, every, epochs, evaluations
):
    """Two epochs of 10 steps are done: a step takes 16 s, an evaluation 20 s."""
    history = [LINE, {**LINE, "epoch": 2, "steps": 20}]
    output = started(RunFolder(tmp_path), history, epochs=epochs, evaluate_every=every)
    run_steps(output, clock, steps=1, seconds=99.0, done=4, epoch=2)  # a first step waits for the loader
    seconds = 16 * (5 + 10 * (epochs - 3)) + 20 * evaluations
    assert output.time_left(2, output.done) == f"0:{seconds // 60:02d}:{seconds % 60:02d} left"


def test_the_rate_of_the_current_epoch_counts_after_its_first_steps(tmp_path, clock):
    output = started(RunFolder(tmp_path), [{**LINE, "steps": 100}], epochs=2)
    run_steps(output, clock, steps=console.FIRST_STEPS, seconds=8.0, epoch=1, batches=100)
    assert output.time_left(1, output.done) == f"0:{int(80 * 1.6 + 20) // 60:02d}:{int(80 * 1.6 + 20) % 60:02d} left"
    clock.now += 8.0
    output.step_done(LOSSES, images=16)
    assert output.time_left(1, output.done) == "0:10:52 left", "79 steps of 8 s, and the evaluation"


def test_an_epoch_without_an_evaluation_is_training_alone(tmp_path, clock):
    history = [LINE, {**LINE, "epoch": 2, "steps": 20, "timing": {"seconds": 100.0, "gpu_hours": 0.0}}]
    output = started(RunFolder(tmp_path), history, epochs=4, evaluate_every=4)
    run_steps(output, clock, steps=1, seconds=1.0, epoch=2)
    assert output.time_left(2, output.done) == "0:03:30 left", "19 steps of 10 s, and the evaluation"


def test_gpu_hours_are_printed_with_gpus(tmp_path, capsys, clock):
    history = [{**LINE, "timing": {**TIMING, "gpu_hours": 2.0}}]
    output = started(RunFolder(tmp_path), history, enabled=True, gpus=4, seconds=900.0)
    run_steps(output, clock, steps=1, seconds=450.0, epoch=1)
    output.epoch_done({**LINE, "epoch": 2, "steps": 20, "timing": {**TIMING, "gpu_hours": 5.25}})
    step, epoch = capsys.readouterr().out.splitlines()
    assert ", 3.50 GPU-hours, " in step, (
        "2 before, 4 x 900 s of this epoch in an earlier process, 4 x 450 s in this one"
    )
    assert ", 180 s, 5.25 GPU-hours, 0:03:00 left" in epoch


def test_the_last_epoch_has_nothing_left(tmp_path, capsys, clock):
    output = started(RunFolder(tmp_path), epochs=1, enabled=True)
    run_steps(output, clock, steps=1, seconds=1.0)
    output.epoch_done(LINE)
    assert capsys.readouterr().out.endswith("1.0 images/s, 180 s\n")


def test_the_progress_bar_is_cleared_before_a_plain_line(tmp_path, capsys, clock, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    output = started(RunFolder(tmp_path), enabled=True, gpus=1)
    run_steps(output, clock, steps=1, seconds=1.0)
    output.epoch_done(LINE)
    live = terminal.getvalue()
    assert "epoch 1/3" in live
    assert "16.0 images/s, 0.00 GPU-hours, 0:00:29 and 3 evaluations left" in live
    assert "\r" in live
    assert live.rpartition("\r")[2].strip() == "", "the bar is cleared"
    assert capsys.readouterr().out.count("\n") == 1


def test_other_ranks_print_nothing(tmp_path, capsys, clock):
    output = started(RunFolder(tmp_path))
    run_steps(output, clock, steps=3, seconds=60.0)
    output.epoch_done(LINE)
    output.log("anything")
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_no_tracker_is_imported_unless_configured(tmp_path):
    code = f"""
import sys
from fovea_detr.training.console import Console
from fovea_detr.runs.folder import RunFolder
output = Console(RunFolder({str(tmp_path)!r}), "base", epochs=1, enabled=True)
output.start([], 0.0, 1, 0)
output.start_epoch(0, 1, 0)
output.step_done({LOSSES}, 16)
output.epoch_done({LINE})
packages = ("tensorboard", "wandb", "mlflow", "trackio", "torch")
assert not [name for name in sys.modules if name.partition(".")[0] in packages]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
