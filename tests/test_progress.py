"""What a person sees: plain lines where there is no terminal, a live line where there is, TensorBoard only if asked."""

from __future__ import annotations

import io
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fovea_detr import progress
from fovea_detr.errors import ConfigError
from fovea_detr.progress import Progress
from fovea_detr.record import RunFolder

LOSSES = {"loss": 7.5, "loss_classification": 0.5, "loss_l1": 0.25, "loss_giou": 0.75}
LINE = {"epoch": 1, **LOSSES, "AP": 0.41, "AP50": 0.622, "timing": {"seconds": 12.0}}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time as the test sets it: `clock.now`."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def run_steps(shown: Progress, clock: SimpleNamespace, steps: int, seconds: float, done: int = 0) -> None:
    shown.start_epoch(0, batches=10, done=done)
    for _ in range(steps):
        clock.now += seconds
        shown.step_done(LOSSES, images=16)


def test_plain_lines_without_a_terminal(tmp_path, capsys, clock):
    shown = Progress(RunFolder(tmp_path), "seed=1", epochs=3, speaks=True)
    run_steps(shown, clock, steps=4, seconds=16.0)
    shown.epoch_done(LINE)
    out, error = capsys.readouterr()
    step = "loss 7.500, classification 0.500, l1 0.250, giou 0.750, 1.0 images/s"
    assert out.splitlines() == [
        f"[seed=1] epoch 1/3 step 2/10: {step}, 0:07:28 left",
        f"[seed=1] epoch 1/3 step 4/10: {step}, 0:06:56 left",
        f"[seed=1] epoch 1/3: {step.replace(', 1.0', ', AP 0.410, AP50 0.622, 1.0')}, 12 s",
    ]
    assert error == ""
    assert "\r" not in out
    logged = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in logged] == [line.removeprefix("[seed=1] ") for line in out.splitlines()]


@pytest.mark.parametrize(("done", "seconds", "left"), [(0, 2.0, "0:00:56"), (5, 2.0, "0:00:46"), (0, 360.0, "2:48:00")])
def test_time_left_is_of_the_whole_run_at_the_rate_of_this_start(tmp_path, clock, done, seconds, left):
    shown = Progress(RunFolder(tmp_path), "base", epochs=3, speaks=False)
    run_steps(shown, clock, steps=2, seconds=seconds, done=done)
    assert shown._left() == left
    assert shown.rate() == pytest.approx(16 / seconds)


def test_a_live_line_in_a_terminal_is_gone_before_a_plain_one(tmp_path, capsys, clock, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = Progress(RunFolder(tmp_path), "base", epochs=3, speaks=True)
    run_steps(shown, clock, steps=1, seconds=1.0)
    shown.epoch_done(LINE)
    live = terminal.getvalue()
    assert "epoch 1/3" in live
    assert "\r" in live
    assert live.rpartition("\r")[2].strip() == "", "the bar is wiped"
    assert capsys.readouterr().out.count("\n") == 1


def test_other_ranks_say_nothing(tmp_path, capsys, clock):
    shown = Progress(RunFolder(tmp_path), "base", epochs=3, speaks=False, tracker="tensorboard")
    run_steps(shown, clock, steps=3, seconds=60.0)
    shown.epoch_done(LINE)
    shown.say("anything")
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_is_never_imported_unless_asked(tmp_path):
    code = f"""
import sys
from fovea_detr.progress import Progress
from fovea_detr.record import RunFolder
shown = Progress(RunFolder({str(tmp_path)!r}), "base", epochs=1, speaks=True)
shown.start_epoch(0, 1, 0)
shown.step_done({LOSSES}, 16)
shown.epoch_done({LINE})
assert not [name for name in sys.modules if name.partition(".")[0] in ("tensorboard", "tensorflow", "torch")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tensorboard_gets_the_numbers_of_an_epoch(tmp_path, monkeypatch):
    written = {}
    writer = SimpleNamespace(
        add_scalar=lambda key, value, step: written.update({(key, step): value}), flush=lambda: None
    )
    fake = SimpleNamespace(SummaryWriter=lambda folder: written.update(folder=folder) or writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)  # pyright: ignore[reportArgumentType]
    shown = Progress(RunFolder(tmp_path), "base", epochs=3, speaks=True, tracker="tensorboard")
    shown.start_epoch(0, 1, 0)
    shown.epoch_done(LINE)
    assert written.pop("folder") == str(tmp_path / "tensorboard")
    assert written == {(key, 1): value for key, value in LINE.items() if isinstance(value, float)}


def test_tensorboard_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"pip install 'fovea-detr\[tensorboard\]'"):
        Progress(RunFolder(tmp_path), "base", epochs=3, speaks=True, tracker="tensorboard")
