"""The output of a run: a progress bar in a terminal, plain lines elsewhere and in train.log, optionally a tracker."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from fovea_detr.runs.folder import METRICS, QUALITIES, SEGM, RunFolder
from fovea_detr.training.tracking import Tracking

SECONDS_BETWEEN_LINES = 30.0
FIRST_STEPS = 20


class Console:
    """The output of one run. name: the prefix of each line. epochs: of the whole run. enabled: on rank 0 alone."""

    tracking: Tracking | None = None

    def __init__(self, folder: RunFolder, name: str, epochs: int, *, enabled: bool) -> None:
        self.folder = folder
        self.name = name
        self.epochs = epochs
        self.enabled = enabled
        self._gpu_hours = self._step_seconds = 0.0
        self._evaluation_seconds: float | None = None  # unknown before the first evaluation
        self._steps = 0
        self._bar: tqdm | None = None
        self._history: list[dict[str, Any]] = []

    def log(self, line: str) -> None:
        """Write a line to stdout and to train.log."""
        if self.enabled:
            self._close_bar()
            print(f"[{self.name}] {line}", flush=True)
            self.folder.log(line)

    def start(self, history: list[dict[str, Any]], seconds: float, evaluate_every: int, gpus: int) -> None:
        """Read the cost so far from the history. seconds: training time of the current epoch in earlier processes.

        history: of the run; it grows by each epoch.
        """
        self._every, self._gpus, self._history = evaluate_every, gpus, history
        for line in history:
            self._update_rates(line)
        self._gpu_hours += gpus * seconds / 3600
        self._send()

    def start_epoch(self, epoch: int, batches: int, done: int) -> None:
        """epoch: counted from 0. done: its batches that were trained on before."""
        self.epoch, self.batches, self.done, self._first = epoch, batches, done, done
        self._begin = self._last_line = time.monotonic()
        self._images = 0
        if self.enabled and sys.stderr.isatty():
            self._bar = tqdm(
                total=batches, initial=done, desc=f"epoch {epoch + 1}/{self.epochs}", leave=False, unit="step"
            )

    def step_done(self, losses: dict[str, float], images: int) -> None:
        """Update the progress bar, and write a line every 30 s. losses: the latest, empty before the first report."""
        self.done += 1
        self._images += images
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(self._status(losses))
            self._bar.update()
        if time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            line = f"epoch {self.epoch + 1}/{self.epochs} step {self.done}/{self.batches}: {self._status(losses)}"
            self.folder.log(line)
            if self._bar is None:
                print(f"[{self.name}] {line}", flush=True)

    def epoch_done(self, history_line: dict[str, Any]) -> None:
        """Write a line for a finished epoch, and its numbers to the tracker."""
        self._update_rates(history_line)
        scores = [f"{key} {percent(history_line[key])}" for key in ("AP", "AP50") if key in history_line]
        timing, epoch = history_line["timing"], history_line["epoch"]
        parts = [*_losses(history_line), *scores, f"{timing['images_per_second']:.1f} images/s"]
        parts += [f"{timing['seconds']:.0f} s", *self._cost(0.0)]
        parts += [self.time_left(epoch, 0)] if epoch < self.epochs else []
        self.log(f"epoch {epoch}/{self.epochs}: {', '.join([*parts, *_graphs(timing)])}")
        self._send()

    def run_done(self, result: dict[str, Any]) -> None:
        """Write the last line, and complete the tracked run. result: as in result.json."""
        self.log(f"done: {summary(result)}")
        if self.tracking is not None:
            self.tracking.finish(self._history or [{"epoch": 0, **result["last"]}])

    def close(self) -> None:
        """Clear the progress bar, and close the tracked run."""
        self._close_bar()
        if self.tracking is not None:
            self.tracking.close()

    def _send(self) -> None:
        if self.tracking is not None:
            self.tracking.send(self._history)

    def rate(self) -> float:
        """Images per second of this epoch's training, over all ranks, since this process began it."""
        return self._images / max(1e-9, time.monotonic() - self._begin)

    def time_left(self, epoch: int, steps_done: int) -> str:
        """The estimated time from this step of this epoch to the end of the run, evaluations included.

        Seconds per step: as in the last epoch, or, after FIRST_STEPS steps of this one (the first steps wait for the
        loader), as in this epoch. Seconds per evaluation: as in the last one.
        """
        step, here = self._step_seconds, self.done - self._first
        if steps_done and (here > FIRST_STEPS or not step):
            step = (time.monotonic() - self._begin) / here
        evaluations = sum(n % self._every == 0 or n == self.epochs for n in range(epoch + 1, self.epochs + 1))
        seconds = step * ((self.epochs - epoch) * self.batches - steps_done)
        if self._evaluation_seconds is None:
            return f"{clock(seconds)} and {evaluations} evaluation{'s' if evaluations > 1 else ''} left"
        return f"{clock(seconds + evaluations * self._evaluation_seconds)} left"

    def _status(self, losses: dict[str, float]) -> str:
        """Losses (none before the first report), rate, cost and time left, at this step."""
        elapsed = time.monotonic() - self._begin
        parts = [*_losses(losses), f"{self.rate():.1f} images/s", *self._cost(elapsed)]
        return ", ".join([*parts, self.time_left(self.epoch, self.done)])

    def _cost(self, seconds: float) -> list[str]:
        """GPU-hours of the finished epochs and of these seconds; nothing on CPUs."""
        return [f"{self._gpu_hours + self._gpus * seconds / 3600:.2f} GPU-hours"] if self._gpus else []

    def _update_rates(self, history_line: dict[str, Any]) -> None:
        timing = history_line["timing"]
        self._gpu_hours = timing.get("gpu_hours", 0.0)
        steps, self._steps = history_line["steps"] - self._steps, history_line["steps"]
        self._step_seconds = (timing["seconds"] - timing.get("evaluation_seconds", 0.0)) / max(1, steps)
        self._evaluation_seconds = timing.get("evaluation_seconds", self._evaluation_seconds)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def clock(seconds: float) -> str:
    """`100:05:09`: hours, minutes and seconds."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def percent(metric: float) -> str:
    """A fraction as the field writes it, 41.0; COCO's -1 and NaN as a dash: the split has no such object."""
    return f"{100 * metric:.1f}" if metric >= 0 else "-"


def summary(result: dict[str, Any]) -> str:
    """result.json in one line: the last and best metrics, and the time it took."""
    names = (*METRICS[:6], f"{SEGM}AP", QUALITIES[0])
    scores = ", ".join(f"{name} {percent(result['last'][name])}" for name in names if name in result["last"])
    best = (
        f"; best AP {percent(result['best']['AP'])} after epoch {result['best']['epoch']}" if "best" in result else ""
    )
    took = f"; {result['epochs']} epochs in {result['minutes']:.1f} minutes" if "epochs" in result else ""
    return f"{scores}{best}{took}; inference {result['inference_seconds'] * 1000:.1f} ms an image"


def _losses(values: dict[str, Any]) -> list[str]:
    names = ("loss", "loss_classification", "loss_l1", "loss_giou", "loss_mask", "loss_dice")
    return [f"{name.removeprefix('loss_')} {values[name]:.3f}" for name in names if name in values]


def _graphs(timing: dict[str, Any]) -> list[str]:
    """The number of compiled graphs, with compile=true."""
    if "compiled_graphs" not in timing:
        return []
    return [f"{timing['compiled_graphs']} compiled graphs ({timing['recompiles']} since the warm-up)"]
