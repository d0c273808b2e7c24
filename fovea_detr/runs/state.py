"""Where a run stands: one rule for `study status`, for launching and for the table. Imports no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fovea_detr.runs.clock import seconds_since
from fovea_detr.runs.folder import FILES, RunFolder

# A run writes its state every 30 s, and less often while it compiles, evaluates or waits for a slow disk. A live run
# that counts as lost is submitted a second time: therefore 20 missing heartbeats.
LOST_SECONDS = 600.0
NEW, MISSING, STARTING, FOREIGN, BROKEN, LOST = "new", "missing", "starting", "no run", "broken", "lost"
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
GONE_AFTER_REQUEUE = "requeued, then cancelled or lost: SLURM does not tell which"
ACTIVE = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}


@dataclass(frozen=True)
class Job:
    """A run's job as its queue reports it, with SLURM's names of states. reason: why it waits, or its exit code."""

    id: str  # ARRAY_INDEX
    name: str
    state: str  # PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT, ...; empty: the queue does not know the job
    reason: str = ""

    @property
    def is_waiting(self) -> bool:
        return self.state in WAITING

    @property
    def is_live(self) -> bool:
        return self.state in WAITING | ACTIVE


@dataclass(frozen=True)
class Standing:
    """word: new, submitted, missing, starting, queued, running, preempted, failed, cancelled, lost, broken, done, ...

    reason: why, where the word alone does not show it.
    """

    word: str
    reason: str = ""

    @property
    def is_live(self) -> bool:
        return self.word in ("queued", "running")

    @property
    def is_open(self) -> bool:
        """Whether it may still change without a new launch."""
        return self.is_live or self.word in ("preempted", STARTING)

    @property
    def needs_launch(self) -> bool:
        """Whether the sweep's command submits it."""
        return not self.is_live and self.word not in ("done", "submitted")


def standing_of(
    path: Path,
    record: Mapping[str, Any],
    has_result: bool,
    job: Job | None = None,
    *,
    submitted: bool = False,
    damage: str = "",
) -> Standing:
    """Where the run in folder `path` stands. A result means done; a live job outweighs the record.

    record: state.json, empty if it is missing or cannot be read. job: from the queue; None if it was not queried.
    submitted: whether the point was sent to a queue. damage: what could not be read of the folder.
    """
    state = record.get("state")
    if has_result:
        return Standing("done")
    if job is not None and job.is_live:
        return Standing("queued", job.reason) if job.is_waiting else Standing("running", _silence(path, record))
    if state == "failed":
        return Standing("failed", str(record.get("reason", "")) or "no reason given")
    if state == "running" and (job is None or "start" not in record):
        return _by_heartbeat(path, record)
    if job is not None and job.state == "CANCELLED":
        return Standing("cancelled", job.reason if job.reason == GONE_AFTER_REQUEUE else "cancelled in SLURM")
    if state == "preempted":
        return Standing("preempted", str(record.get("reason", "")))
    if state in ("queued", "running"):
        return Standing("queued") if job is None else _died_silently(job)
    return Standing(BROKEN, damage) if damage else _without_state(path, state, submitted)


def _by_heartbeat(path: Path, record: Mapping[str, Any]) -> Standing:
    if silence := _silence(path, record):
        return Standing(LOST, silence)
    return Standing("running", "" if "start" in record else "outside SLURM")


def _silence(path: Path, record: Mapping[str, Any]) -> str:
    """Of a run in state running: for how long, by its file server's clock; empty if it is not worth a word."""
    if record.get("state") != "running":
        return ""
    try:
        silent = seconds_since(path / "state.json")
    except OSError:  # removed meanwhile
        return ""
    return f"silent for {silent / 60:.0f} min" if silent > LOST_SECONDS else ""


def _died_silently(job: Job) -> Standing:
    """The record is queued or running, and no job is alive: it was killed before it could write a reason."""
    if not job.state:
        return Standing(LOST, "the queue does not know its job")
    details = f"{job.state}, {job.reason}" if job.reason else job.state
    word = "failed" if job.state in ("FAILED", "OUT_OF_MEMORY") else LOST
    return Standing(word, f"killed; no message was written; SLURM says {details}")


def _without_state(path: Path, state: object, submitted: bool) -> Standing:
    if not path.is_dir():
        return Standing(MISSING, "submitted, but has no folder") if submitted else Standing(NEW)
    names = set(os.listdir(path))
    if state == "done":
        return Standing(BROKEN, "no result.json")
    if names & set(FILES):
        return Standing(BROKEN, f"state.json: no such state: {one_line(str(state or 'none given'))}")
    if any(name == ".lock" or name.endswith(".tmp") for name in names):
        return Standing(STARTING, "nothing is written yet")
    return Standing(FOREIGN, "no file of a run in this folder")


def read_record(folder: RunFolder) -> tuple[dict[str, Any], bool, str]:
    """-> state.json (empty if there is none), whether there is a result, and what could not be read."""
    problems: list[str] = []
    found = []
    for name, read in (("state.json", folder.state), ("result.json", folder.result)):  # a run may end in between
        found.append(read_or_note(name, read, dict, problems) if (folder.path / name).exists() else None)
    return found[0] or {}, found[1] is not None, "; ".join(problems)


def read_or_note(file: str, read: Callable[[], Any], kind: type, problems: list[str]) -> Any:
    """What `read` returns if it is of the kind, else None and a line in `problems`: one bad file is never fatal."""
    try:
        value = read()
        items = value if isinstance(value, list) else []
        if isinstance(value, kind) and all(isinstance(item, dict) for item in items):
            return value
        problems.append(f"{file}: not what a run writes")
    except FileNotFoundError:  # replaced or removed while it was being read
        return None
    except Exception as error:
        problems.append(f"{file}: cannot be read: {one_line(str(error).partition(chr(10))[0])}")
    return None


def number(value: Any) -> float:
    """NaN for what is no finite number: a file may hold anything."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e300 else math.nan


def one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
