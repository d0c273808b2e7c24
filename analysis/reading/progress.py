"""The table's text for where a run stands: `running, epoch 13/50, 3 h 20 min left`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from analysis.reading.outcome import node_of
from analysis.reading.settings import last_epoch
from fovea_detr.runs.settings import Settings
from fovea_detr.runs.state import LOST, MISSING, STARTING, Standing, number, one_line

History = Sequence[dict[str, Any]]


def describe(
    standing: Standing, record: dict[str, Any], settings: Settings, history: History, job: str | None = None
) -> str:
    """The state as one line. record: state.json. history: the epochs done. job: SLURM's id, if known."""
    start = node_of(record.get("start"))
    count = start.get("restarts") or 0
    restarts = f", {count} restart{'s' if count != 1 else ''}" if count else ""
    planned, word = planned_epochs(settings), standing.word
    epoch = current_epoch(record, len(history), planned)
    if word == "running":
        left = seconds_left(record, history, planned)
        return f"running, {epoch}{'' if math.isnan(left) else f', {span(left)} left'}{restarts}"
    if word == LOST:
        return f"lost? running, {epoch}, {standing.reason}"
    if word == "preempted":
        return f"preempted in {epoch}{restarts}"
    number_ = job or start.get("job")
    if word == "queued":
        return one_line(f"queued{f', job {number_}' if number_ else ''}{restarts}")
    return one_line(f"{word}: {standing.reason}") if word in ("failed", STARTING, MISSING) else word


def planned_epochs(settings: Settings) -> int | None:
    planned = last_epoch(settings) or ""
    return int(planned) if planned.isdigit() else None


def current_epoch(record: dict[str, Any], done: int, planned: int | None) -> str:
    """`epoch 13/50`, counted from 1."""
    epoch = number(record.get("epoch"))
    now = (done if math.isnan(epoch) else int(epoch)) + 1
    return f"epoch {min(now, planned)}/{planned}" if planned else f"epoch {now}"


def seconds_left(record: dict[str, Any], history: History, planned: int | None) -> float:
    """By the pace of the last epoch; NaN before there is one."""
    seconds = number(node_of(history[-1].get("timing")).get("seconds")) if history else math.nan
    if planned is None or math.isnan(seconds):
        return math.nan
    steps = number(history[-1].get("steps")) - (number(history[-2].get("steps")) if len(history) > 1 else 0.0)
    done = number(record.get("batches_done")) if record.get("epoch") == len(history) else 0.0
    share = min(1.0, done / steps) if steps > 0 else 0.0
    since = max(0.0, time.time() - number(record.get("time")))
    epochs = planned - len(history) - (0.0 if math.isnan(share) else share)
    return max(0.0, epochs * seconds - since)


def span(seconds: float) -> str:
    """`3 h 20 min`: the two largest units that are not zero."""
    minutes = max(1, round(seconds / 60))
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    parts = [f"{count} {unit}" for count, unit in ((days, "d"), (hours, "h"), (minutes, "min")) if count]
    return " ".join(parts[:2])
