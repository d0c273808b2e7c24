"""state.json in words: where a run stands, for a person, and the one word that a filter asks for. No torch."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

LOST_SECONDS = 600.0  # a run says every half minute that it is alive; after this long without a word it was killed
FOREIGN, STARTING, MISSING, LOST, BROKEN = "no run", "starting", "missing", "lost", "broken"


@dataclass(frozen=True)
class Standing:
    """word: done, running, queued, preempted, failed, missing, lost, starting, broken, no run; text: the whole."""

    word: str
    text: str

    @property
    def is_open(self) -> bool:
        """Whether it may still change by itself."""
        return self.word in ("running", "queued", "preempted", STARTING)


@dataclass(frozen=True)
class Progress:
    """Of a run that has not finished. epochs: done; planned: of how many; epoch_seconds, epoch_steps: of the last."""

    epochs: int = 0
    planned: int | None = None
    epoch_seconds: float = math.nan
    epoch_steps: float = math.nan

    def words(self, record: dict[str, Any]) -> str:
        """`epoch 13/50`, the one it is in."""
        epoch = number(record.get("epoch"))
        now = (self.epochs if math.isnan(epoch) else int(epoch)) + 1
        return f"epoch {min(now, self.planned)}/{self.planned}" if self.planned else f"epoch {now}"

    def seconds_left(self, record: dict[str, Any]) -> float:
        """By the pace of the last epoch; NaN before there is one."""
        if self.planned is None or math.isnan(self.epoch_seconds):
            return math.nan
        done = number(record.get("batches_done")) if record.get("epoch") == self.epochs else 0.0
        share = min(1.0, done / self.epoch_steps) if self.epoch_steps > 0 else 0.0
        since = max(0.0, time.time() - number(record.get("time")))
        epochs = self.planned - self.epochs - (0.0 if math.isnan(share) else share)
        return max(0.0, epochs * self.epoch_seconds - since)


def describe(record: dict[str, Any], progress: Progress, job: str | None = None) -> Standing | None:
    """Of a run without a result; None if the record says nothing that can be believed. job: SLURM's id, if known."""
    state, start = record.get("state"), record.get("start")
    start = start if isinstance(start, dict) else {}
    again = start.get("restarts") or 0
    restarts = f", {again} restart{'s' if again != 1 else ''}" if again else ""
    if state == "failed":
        return Standing("failed", one_line(f"failed: {record.get('reason', 'no reason given')}"))
    if state == "running":
        return _running(record, progress, restarts)
    if state == "preempted":
        return Standing("preempted", f"preempted in {progress.words(record)}{restarts}")
    if state == "queued":
        number_ = job or start.get("job")
        return Standing("queued", one_line(f"queued{f', job {number_}' if number_ else ''}{restarts}"))
    return None


def _running(record: dict[str, Any], progress: Progress, restarts: str) -> Standing:
    where = f"running, {progress.words(record)}"
    silent = time.time() - number(record.get("time"))
    if silent > LOST_SECONDS:
        return Standing(LOST, f"lost? {where}, silent for {silent / 60:.0f} min")
    left = progress.seconds_left(record)
    return Standing("running", f"{where}{'' if math.isnan(left) else f', {span(left)} left'}{restarts}")


def span(seconds: float) -> str:
    """`3 h 20 min`: the two largest units that are not zero."""
    minutes = max(1, round(seconds / 60))
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    parts = [f"{count} {unit}" for count, unit in ((days, "d"), (hours, "h"), (minutes, "min")) if count]
    return " ".join(parts[:2])


def number(value: Any) -> float:
    """NaN for what is no finite number: a file may hold anything."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e300 else math.nan


def one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
