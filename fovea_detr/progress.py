"""What a person sees of a run: a live line in a terminal, plain lines elsewhere, TensorBoard if asked."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from fovea_detr.errors import ConfigError
from fovea_detr.record import RunFolder

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Of one run, on the rank that speaks; the others say nothing. epochs: of the whole run; name: begins each line."""

    def __init__(self, folder: RunFolder, name: str, epochs: int, *, speaks: bool, tracker: str = "none") -> None:
        self.folder = folder
        self.name = name
        self.epochs = epochs
        self.speaks = speaks
        self._bar: tqdm | None = None
        self._writer = tensorboard_writer(folder) if speaks and tracker == "tensorboard" else None

    def say(self, line: str) -> None:
        """A plain line on stdout and in train.log."""
        if self.speaks:
            self._close_bar()
            print(f"[{self.name}] {line}", flush=True)
            self.folder.log(line)

    def start_epoch(self, epoch: int, batches: int, done: int) -> None:
        self.epoch, self.batches, self.done = epoch, batches, done
        self._begin = self._last_line = time.monotonic()
        self._images = self._first = 0
        self._first = done
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
            self._bar.set_postfix_str(f"{self._losses(losses)}, {self.rate():.1f} images/s, {self._left()} left in all")
            self._bar.update()
        if time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            line = f"epoch {self.epoch + 1}/{self.epochs} step {self.done}/{self.batches}: {self._losses(losses)}, "
            line += f"{self.rate():.1f} images/s, {self._left()} left"
            self.folder.log(line)
            if self._bar is None:
                print(f"[{self.name}] {line}", flush=True)

    def epoch_done(self, history_line: dict[str, Any]) -> None:
        scores = ", ".join(f"{key} {history_line[key]:.3f}" for key in ("AP", "AP50") if key in history_line)
        self.say(
            f"epoch {history_line['epoch']}/{self.epochs}: {self._losses(history_line)}"
            f"{', ' + scores if scores else ''}, {self.rate():.1f} images/s, {history_line['timing']['seconds']:.0f} s"
        )
        if self._writer is not None:
            for key, value in history_line.items():
                if isinstance(value, float):
                    self._writer.add_scalar(key, value, history_line["epoch"])
            self._writer.flush()

    def rate(self) -> float:
        """Images per second of this epoch, over all ranks, since this process began it."""
        return self._images / max(1e-9, time.monotonic() - self._begin)

    def _left(self) -> str:
        per_step = (time.monotonic() - self._begin) / max(1, self.done - self._first)
        steps = self.batches - self.done + (self.epochs - self.epoch - 1) * self.batches
        hours, seconds = divmod(int(per_step * steps), 3600)
        return f"{hours}:{seconds // 60:02d}:{seconds % 60:02d}"

    def _losses(self, values: dict[str, Any]) -> str:
        names = ("loss", "loss_classification", "loss_l1", "loss_giou")
        return ", ".join(f"{name.removeprefix('loss_')} {values[name]:.3f}" for name in names if name in values)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def tensorboard_writer(folder: RunFolder) -> Any:
    """A SummaryWriter into the run folder. Raises ConfigError, one line, where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "tracker=tensorboard needs the package tensorboard: pip install 'fovea-detr[tensorboard]'"
        ) from None
    return SummaryWriter(str(folder.path / "tensorboard"))
