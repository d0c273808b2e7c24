"""What a person sees of a run: a live line in a terminal, plain lines elsewhere, TensorBoard if asked."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from fovea_detr.errors import ConfigError
from fovea_detr.runs.folder import RunFolder

SECONDS_BETWEEN_LINES = 30.0
FIRST_STEPS = 20


class Progress:
    """Of one run, on the rank that speaks; the others say nothing. epochs: of the whole run; name: begins each line."""

    def __init__(self, folder: RunFolder, name: str, epochs: int, *, speaks: bool, tracker: str = "none") -> None:
        self.folder = folder
        self.name = name
        self.epochs = epochs
        self.speaks = speaks
        self._gpu_hours = self._step_seconds = 0.0
        self._evaluation_seconds: float | None = None  # not known before the first one
        self._steps = 0
        self._bar: tqdm | None = None
        self._writer = tensorboard_writer(folder) if speaks and tracker == "tensorboard" else None

    def say(self, line: str) -> None:
        """A plain line on stdout and in train.log."""
        if self.speaks:
            self._close_bar()
            print(f"[{self.name}] {line}", flush=True)
            self.folder.log(line)

    def start(self, history: list[dict[str, Any]], seconds: float, evaluate_every: int, gpus: int) -> None:
        """Where the run stands, `seconds` into an epoch: what its epochs have taken, those to come will take, too."""
        self._every, self._gpus = evaluate_every, gpus
        for line in history:
            self._learn(line)
        self._gpu_hours += gpus * seconds / 3600

    def start_epoch(self, epoch: int, batches: int, done: int) -> None:
        self.epoch, self.batches, self.done, self._first = epoch, batches, done, done
        self._begin = self._last_line = time.monotonic()
        self._images = 0
        if self.speaks and sys.stderr.isatty():
            self._bar = tqdm(
                total=batches, initial=done, desc=f"epoch {epoch + 1}/{self.epochs}", leave=False, unit="step"
            )

    def step_done(self, losses: dict[str, float], images: int) -> None:
        self.done += 1
        self._images += images
        if not self.speaks:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._losses(losses)}, {self._pace()}")
            self._bar.update()
        if time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            line = f"epoch {self.epoch + 1}/{self.epochs} step {self.done}/{self.batches}: {self._losses(losses)}, "
            line += self._pace()
            self.folder.log(line)
            if self._bar is None:
                print(f"[{self.name}] {line}", flush=True)

    def epoch_done(self, history_line: dict[str, Any]) -> None:
        self._learn(history_line)
        scores = ", ".join(f"{key} {history_line[key]:.3f}" for key in ("AP", "AP50") if key in history_line)
        timing, epoch = history_line["timing"], history_line["epoch"]
        left = f", {self.left(epoch, 0)}" if epoch < self.epochs else ""
        self.say(
            f"epoch {epoch}/{self.epochs}: {self._losses(history_line)}{', ' + scores if scores else ''}, "
            f"{timing['images_per_second']:.1f} images/s, {timing['seconds']:.0f} s{self._cost(0.0)}{left}"
            f"{_graphs(timing)}"
        )
        if self._writer is not None:
            for key, value in history_line.items():
                if isinstance(value, float):
                    self._writer.add_scalar(key, value, epoch)
            self._writer.flush()

    def rate(self) -> float:
        """Images per second of this epoch's training, over all ranks, since this process began it."""
        return self._images / max(1e-9, time.monotonic() - self._begin)

    def left(self, epoch: int, steps_done: int) -> str:
        """The time from this step of this epoch to the end of the run, the evaluations to come included.

        A step is expected to take what it took in the last epoch or, after the first of them in this one, which wait
        for the loader, what it takes now; an evaluation, what the last one took.
        """
        step, here = self._step_seconds, self.done - self._first
        if steps_done and (here > FIRST_STEPS or not step):
            step = (time.monotonic() - self._begin) / here
        evaluations = sum(n % self._every == 0 or n == self.epochs for n in range(epoch + 1, self.epochs + 1))
        seconds = step * ((self.epochs - epoch) * self.batches - steps_done)
        if self._evaluation_seconds is None:
            return f"{clock(seconds)} and {evaluations} evaluation{'s' if evaluations > 1 else ''} left"
        return f"{clock(seconds + evaluations * self._evaluation_seconds)} left"

    def _pace(self) -> str:
        elapsed = time.monotonic() - self._begin
        return f"{self.rate():.1f} images/s{self._cost(elapsed)}, {self.left(self.epoch, self.done)}"

    def _cost(self, seconds: float) -> str:
        """GPU-hours of the epochs that are done and of these seconds; nothing where there is no GPU."""
        return f", {self._gpu_hours + self._gpus * seconds / 3600:.2f} GPU-hours" if self._gpus else ""

    def _learn(self, history_line: dict[str, Any]) -> None:
        timing = history_line["timing"]
        self._gpu_hours = timing.get("gpu_hours", 0.0)
        steps, self._steps = history_line["steps"] - self._steps, history_line["steps"]
        self._step_seconds = (timing["seconds"] - timing.get("evaluation_seconds", 0.0)) / max(1, steps)
        self._evaluation_seconds = timing.get("evaluation_seconds", self._evaluation_seconds)

    def _losses(self, values: dict[str, Any]) -> str:
        names = ("loss", "loss_classification", "loss_l1", "loss_giou")
        return ", ".join(f"{name.removeprefix('loss_')} {values[name]:.3f}" for name in names if name in values)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def clock(seconds: float) -> str:
    """`100:05:09`: hours, minutes and seconds."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def tensorboard_writer(folder: RunFolder) -> Any:
    """A SummaryWriter into the run folder. Raises ConfigError, one line, where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "tracker=tensorboard needs the package tensorboard: pip install 'fovea-detr[tensorboard]'"
        ) from None
    return SummaryWriter(str(folder.path / "tensorboard"))


def _graphs(timing: dict[str, Any]) -> str:
    """With compile=true: what was compiled."""
    if "compiled_graphs" not in timing:
        return ""
    return f", {timing['compiled_graphs']} compiled graphs ({timing['recompiles']} since the warm-up)"
