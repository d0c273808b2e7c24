"""Runs -> rows: one row per configuration, over its seeds, and the one rule of which runs count. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from analysis.reading.runs import Run
from analysis.reading.settings import SEED, overrides
from analysis.tables.cells import BEST, NUMBERS, STATE, STUDY, Cell, Column, N, Value, mean_of
from analysis.tables.filters import as_fraction, full_key, parse_conditions
from fovea_detr.config.groups import natural
from fovea_detr.config.schema import AXES
from fovea_detr.errors import UserError
from fovea_detr.runs.folder import ALL_METRICS

STATE_ORDER = ("done", "running", "queued", "preempted", "failed", "missing", "lost", "starting", "broken", "no run")


@dataclass(eq=False)
class Row:
    """label: what the row is. notes: warnings about comparing it. best: the columns in which it is, or is not resolved
    from, the best."""

    study: str
    settings: dict[str, str]
    runs: list[Run]
    label: str = ""
    cells: dict[str, Cell] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    best: set[str] = field(default_factory=set)

    @cached_property
    def counted(self) -> list[Run]:
        """The averaged runs, one per seed: the finished ones; if none, those with the latest evaluated epoch."""
        done = [run for run in self.runs if run.is_done]
        if not done:
            at = [run.numbers["at_epoch"] for run in self.runs if "at_epoch" in run.numbers]
            done = [run for run in self.runs if at and run.numbers.get("at_epoch") == max(at)] or self.runs[:1]
        return list({run.settings.get(SEED, run.path.name): run for run in reversed(done)}.values())[::-1]

    @property
    def is_finished(self) -> bool:
        return all(run.is_done for run in self.counted)

    def values(self, name: str) -> list[float]:
        return [run.numbers[name] for run in self.counted if name in run.numbers]

    def mean(self, name: str) -> Value | None:
        return mean_of(self.values(name), len(self.counted))

    @property
    def state(self) -> str:
        """The full text if all runs share it, else `2 done, 1 failed`."""
        return self.runs[0].state if len({run.state for run in self.runs}) == 1 else count_states(self.runs)


def ranked(rows: Iterable[Row], metric: str) -> list[Row]:
    """The best first: finished ones before others, then by the metric."""
    means = {row: row.mean(metric) for row in rows}
    return sorted(means, key=lambda row: (not row.is_finished, -mean.mean if (mean := means[row]) else 1.0))


def count_states(runs: Iterable[Run]) -> str:
    """`2 done, 1 failed`."""
    counts = Counter(run.standing.word for run in runs)
    return ", ".join(f"{counts[word]} {word}" for word in STATE_ORDER if word in counts)


def make_rows(runs: Iterable[Run], by_seed: bool = False) -> list[Row]:
    """by_seed: one row per folder."""
    rows: dict[object, Row] = {}
    for run in runs:
        settings = run.settings if by_seed else {key: value for key, value in run.settings.items() if key != SEED}
        key = run.path if by_seed else (run.study, frozenset(settings.items()) or run.path)
        rows.setdefault(key, Row(run.study, settings, [])).runs.append(run)
    return list(rows.values())


def select_rows(runs: Sequence[Run], where: Sequence[str], by_seed: bool) -> list[Row]:
    """Conditions on settings and states select runs; conditions on numbers select rows by their means."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    numbers = dict.fromkeys([N.name, *ALL_METRICS, BEST, *(column.name for column in NUMBERS)])
    asked = parse_conditions(where, [*numbers, STUDY.name, STATE.name, *keys])
    asked = [as_fraction(one) if one.key in (*ALL_METRICS, BEST) else one for one in asked]

    def run_matches(run: Run) -> bool:
        facts = {STUDY.name: run.study, STATE.name: run.standing.word} | run.settings
        return all(one.holds(facts.get(one.key)) for one in asked if one.key not in numbers)

    def number(row: Row, name: str) -> float | None:
        value = row.mean(name)
        return len(row.counted) if name == N.name else value and value.mean

    rows = make_rows(filter(run_matches, runs), by_seed)
    rows = [row for row in rows if all(one.holds(number(row, one.key)) for one in asked if one.key in numbers)]
    if not rows:
        raise UserError(f"none of {len(runs)} runs matches {' and '.join(condition.text for condition in asked)}")
    return rows


def name_of(row: Row) -> str:
    """Of a row that no setting tells from the others: the overrides in a folder's name that hold for it, or its groups.

    A folder may have been copied or renamed.
    """
    settings = row.runs[0].settings if len(row.runs) == 1 else row.settings
    typed = overrides(row.runs[0].path.name)
    held = [
        f"{key}={value}"
        for key, value in typed.items()
        if any(found == value and (full == key or full.endswith(f".{key}")) for full, found in settings.items())
    ]
    words = [settings[key] for key in ("model", *AXES, "schedule", "data") if key in settings]
    return ",".join(held) or ", ".join(words) or row.runs[0].path.name


def duplicate_runs(runs: Iterable[Run]) -> list[str]:
    """One line per configuration and seed found in several folders."""
    places: dict[frozenset[tuple[str, str]], list[Run]] = {}
    for run in runs:
        if run.has_config:
            places.setdefault(frozenset(run.settings.items()), []).append(run)
    return [
        f"the same configuration and seed in {len(found)} folders, counted once: "
        f"{', '.join(str(run.path) for run in found[:4])}{', ...' if len(found) > 4 else ''}"
        for found in places.values()
        if len(found) > 1
    ]


def sorted_rows(rows: list[Row], columns: Sequence[Column], names: str, reverse: bool) -> list[Row]:
    """Sort by the named columns: metrics and differences descending, others ascending; empty cells last."""
    known = {column.title: column for column in columns} | {column.name: column for column in columns}
    for name in reversed(names.split(",")):
        column = known[full_key(name, known)]
        descending = (column.is_metric or column.signed or column.name == BEST) != reverse
        with_value = [row for row in rows if row.cells.get(column.name) is not None]
        without = [row for row in rows if row.cells.get(column.name) is None]
        rows = sorted(with_value, key=lambda row, column=column: _order(row, column), reverse=descending) + without
    return rows


def _order(row: Row, column: Column) -> list[tuple[float, str]]:
    cell = row.cells[column.name]
    return [(cell.mean, "")] if isinstance(cell, Value) else natural(cell or "")
