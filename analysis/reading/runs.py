"""One run folder -> one Run, in any state of the folder: broken, empty, being written, no run at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.reading.outcome import (
    last_scores,
    node_of,
    read_facts,
    read_numbers,
    resume_changes,
    score,
    undefined_scores,
)
from analysis.reading.progress import Progress, describe
from analysis.reading.settings import last_epoch, leaf, overrides
from fovea_detr.runs.folder import FILES, RunFolder
from fovea_detr.runs.state import BROKEN, FOREIGN, STARTING, Job, Standing, number, read_or_note, standing_of
from fovea_detr.runs.stored import settings_of

TAIL_BYTES = 1 << 16  # many times most lines of history.jsonl


@dataclass
class Run:
    """settings: the configuration by key, as text; a group by its name (`model`: fovea_r50).

    numbers: the metrics of the last evaluation (fractions) and the cost by name; unknown ones are absent. undefined:
    the reasons of metrics that are no number. facts: what must be equal for runs to be comparable. changes: what a
    resume had otherwise. problems: what in the folder could not be read. as_submitted: the settings are those sent to
    the queue; values that are read from the data are still null. time: of the last change of state, in seconds.
    """

    path: Path
    settings: dict[str, str]
    has_config: bool
    standing: Standing
    state: str  # the standing as one line of text
    numbers: dict[str, float] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    as_submitted: bool = False
    time: float = math.nan

    @property
    def study(self) -> str:
        return self.path.parent.name

    @property
    def is_done(self) -> bool:
        return self.standing.word == "done"

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """Read at first use: curves need it, a table does not."""
        return read_or_note("history.jsonl", RunFolder(self.path).history, list, []) or []

    @cached_property
    def ap_by_category(self) -> dict[str, float]:
        """Of the last evaluation; NaN for a category without an object."""
        result = read_or_note("result.json", RunFolder(self.path).result, dict, []) or {}
        found = node_of(last_scores([] if result else self.history, result).get("AP_by_category"))
        return {str(name): score(value) for name, value in found.items()}

    @cached_property
    def provenance(self) -> dict[str, Any]:
        return read_or_note("provenance.json", RunFolder(self.path).provenance, dict, []) or {}


def read_run(path: Path, job: str | None = None, frozen: Path | None = None, end: Job | None = None) -> Run:
    """All that can be read of a folder; the rest is in `problems`. frozen: the submitted configuration.

    end: how its job ended, as far as the study's manifest and its batch script tell; SLURM is not asked.
    """
    folder, problems = RunFolder(path), []
    present = {name for name in os.listdir(path) if name in FILES}

    def attempt(name: str, read: Callable[[], Any], kind: type = dict) -> Any:
        return read_or_note(name, read, kind, problems) if name in present else None

    settings = attempt("config.yaml", lambda: settings_of(folder.config_text() or ""))
    record = attempt("state.json", folder.state) or {}
    if record.get("state") == "done":
        present |= set(os.listdir(path))  # it may have ended since they were listed
    result = attempt("result.json", folder.result)
    provenance = attempt("provenance.json", folder.provenance) or {}
    unfinished = result is None
    history = attempt("history.jsonl", folder.history if unfinished else lambda: list(last_line(path)), list) or []
    never_started = record.get("state") == "queued" or (end is not None and end.state == "CANCELLED")
    standing = standing_of(path, record, not unfinished, end if never_started else None, damage="; ".join(problems))
    state = describe(standing, record, progress_of(settings or {}, history), job)
    if standing.word in (BROKEN, FOREIGN) and not problems:
        problems.append(standing.reason)
    has_own = settings is not None
    if not has_own and frozen is None and present and standing.word not in ("queued", STARTING):
        problems.append("no config.yaml that can be read: its columns are taken from the folder's name")
    if settings is None:
        sent = frozen and read_or_note(frozen.name, lambda: settings_of(frozen.read_text()), dict, problems)
        settings = sent or None
    run = Run(path, settings or overrides(path.name), settings is not None, standing, state, problems=problems)
    run.as_submitted = settings is not None and not has_own
    run.numbers = read_numbers(history, result or {}, provenance)
    run.undefined, run.changes = undefined_scores(last_scores(history, result or {})), resume_changes(provenance)
    run.time = number(record.get("time"))
    run.facts = read_facts(run.numbers, leaf(run.settings, "precision") if run.has_config else None, provenance)
    return run


def last_line(path: Path) -> Iterator[dict[str, Any]]:
    """The end of a history: all that a finished run's table needs, and 500 epochs of 80 categories are megabytes."""
    with (path / "history.jsonl").open("rb") as file:
        start, content = file.seek(0, os.SEEK_END), b""
        while start > 0 and b"\n" not in content.strip():  # a line of 1000 categories is longer
            size = min(TAIL_BYTES, start)
            start = file.seek(start - size)
            content = file.read(size) + content
    if content.strip():
        yield json.loads(content.strip().rpartition(b"\n")[2])


def progress_of(settings: dict[str, str], history: list[dict[str, Any]]) -> Progress:
    line, planned = history[-1] if history else {}, last_epoch(settings) or ""
    before = number(history[-2].get("steps")) if len(history) > 1 else 0.0
    return Progress(
        epochs=len(history),
        planned=int(planned) if planned.isdigit() else None,
        epoch_seconds=number(node_of(line.get("timing")).get("seconds")),
        epoch_steps=number(line.get("steps")) - before,
    )
