"""Runs -> rows: one row per configuration, over its seeds. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from analysis.reading.folders import without_seed
from analysis.reading.runs import Run
from analysis.reading.settings import SEED, leaf
from analysis.tables.cells import Cell, Column, Value, mean_of
from analysis.tables.filters import full_key
from fovea_detr.config.groups import natural

STATE_ORDER = ("done", "running", "queued", "preempted", "failed", "missing", "lost", "starting", "broken", "no run")


@dataclass(eq=False)
class Row:
    """notes: warnings about comparing this row. best: names of the columns in which it is the best."""

    study: str
    settings: dict[str, str]
    runs: list[Run]
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

    @property
    def name(self) -> str:
        return self.runs[0].path.name if len(self.runs) == 1 else without_seed(self.runs[0].path.name)

    def mean(self, name: str) -> Value | None:
        return mean_of([run.numbers[name] for run in self.counted if name in run.numbers])

    @property
    def state(self) -> str:
        """The full text if all runs share it, else `2 done, 1 failed`."""
        return self.runs[0].state if len({run.state for run in self.runs}) == 1 else count_states(self.runs)


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


def note_unfinished(row: Row) -> None:
    """Note an unfinished row. The learning-rate drop alone adds several AP, so earlier numbers are not comparable."""
    epoch, planned, drop = row.mean("at_epoch"), leaf(row.settings, "epochs"), leaf(row.settings, "lr_drop") or ""
    if row.is_finished or epoch is None:
        return
    where = f"epoch {epoch.mean:.0f}{f' of {planned}' if planned else ''}"
    if drop.isdigit() and epoch.mean <= int(drop):
        row.notes.append(f"{where}, before the learning-rate drop after {drop}: not comparable")
    else:
        row.notes.append(f"{where}, not finished: not comparable")


def note_differences(rows: Sequence[Row], reference: Row | None = None) -> None:
    """Note rows whose batch size, precision, data or code differ from the reference's, or else from most rows'."""
    for fact in dict.fromkeys(fact for row in rows for run in row.counted for fact in run.facts):
        values = [{run.facts[fact] for run in row.counted if fact in run.facts} for row in rows]
        common = Counter(value for found in values for value in sorted(found)).most_common(1)[0][0]
        of_reference = values[next((i for i, row in enumerate(rows) if row is reference), 0)] if reference else set()
        if len(of_reference) == 1:
            common = next(iter(of_reference))
        for row, found in zip(rows, values, strict=True):
            if len(found) > 1:
                row.notes.append(f"{fact} differs between seeds: {' / '.join(sorted(found))}")
            elif found - {common}:
                row.notes.append(f"{fact} {next(iter(found))}, other rows {common}")


def duplicate_runs(runs: Iterable[Run]) -> list[str]:
    """One line per configuration and seed found in several folders."""
    places: dict[frozenset[tuple[str, str]], list[Run]] = {}
    for run in runs:
        if run.has_config:
            places.setdefault(frozenset(run.settings.items()), []).append(run)
    return [
        f"the same configuration and seed in {len(found)} folders: {', '.join(str(run.path) for run in found)}"
        for found in places.values()
        if len(found) > 1
    ]


def sorted_rows(rows: list[Row], columns: Sequence[Column], names: str, reverse: bool) -> list[Row]:
    """Sort by the named columns: metrics and differences descending, others ascending; empty cells last."""
    known = {column.title: column for column in columns} | {column.name: column for column in columns}
    for name in reversed(names.split(",")):
        column = known[full_key(name, known)]
        descending = (column.spread or column.signed) != reverse
        with_value = [row for row in rows if row.cells.get(column.name) is not None]
        without = [row for row in rows if row.cells.get(column.name) is None]
        rows = sorted(with_value, key=lambda row, column=column: _order(row, column), reverse=descending) + without
    return rows


def _order(row: Row, column: Column) -> list[tuple[float, str]]:
    cell = row.cells[column.name]
    return [(cell.mean, "")] if isinstance(cell, Value) else natural(cell or "")
