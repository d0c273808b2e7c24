"""The table's text for where a run stands: `running, epoch 13/50, 3 h 20 min left`."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from fovea_detr.runs.state import LOST, MISSING, STARTING, Standing, number, one_line


@dataclass(frozen=True)
class Progress:
    """Of a run that has not finished. epochs: done; planned: of how many; epoch_seconds, epoch_steps: of the last."""

    epochs: int = 0
    planned: int | None = None
    epoch_seconds: float = math.nan
    epoch_steps: float = math.nan

    def current_epoch(self, record: dict[str, Any]) -> str:
        """`epoch 13/50`, counted from 1."""
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


def describe(standing: Standing, record: dict[str, Any], progress: Progress, job: str | None = None) -> str:
    """The state as one line. job: SLURM's id, if known."""
    start = record.get("start")
    start = start if isinstance(start, dict) else {}
    count = start.get("restarts") or 0
    restarts = f", {count} restart{'s' if count != 1 else ''}" if count else ""
    epoch, word = progress.current_epoch(record), standing.word
    if word == "running":
        left = progress.seconds_left(record)
        return f"running, {epoch}{'' if math.isnan(left) else f', {span(left)} left'}{restarts}"
    if word == LOST:
        return f"lost? running, {epoch}, {standing.reason}"
    if word == "preempted":
        return f"preempted in {epoch}{restarts}"
    number_ = job or start.get("job")
    if word == "queued":
        return one_line(f"queued{f', job {number_}' if number_ else ''}{restarts}")
    return one_line(f"{word}: {standing.reason}") if word in ("failed", STARTING, MISSING) else word


def span(seconds: float) -> str:
    """`3 h 20 min`: the two largest units that are not zero."""
    minutes = max(1, round(seconds / 60))
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    parts = [f"{count} {unit}" for count, unit in ((days, "d"), (hours, "h"), (minutes, "min")) if count]
    return " ".join(parts[:2])
