"""Notes on rows: what makes their numbers incomparable, incomplete or undefined. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from analysis.reading.settings import last_epoch, leaf
from analysis.tables.rows import Row

COST = "device"  # the fact that makes cost incomparable, and no metric


def add_notes(rows: Sequence[Row], metrics: Sequence[str], baseline: Row | None) -> None:
    """baseline: differences are told against it; without one, against most rows of the study."""
    for study in dict.fromkeys(row.study for row in rows):
        of_study = [row for row in rows if row.study == study]
        note_differences(of_study, baseline if baseline and baseline.study == study else None)
    for row in rows:
        row.notes += [*resumes(row), *undefined(row, metrics), *unfinished(row)]


def unfinished(row: Row) -> Iterator[str]:
    """The learning-rate drop alone adds several AP, so earlier numbers are not comparable."""
    epoch, planned, drop = row.mean("at_epoch"), last_epoch(row.settings), leaf(row.settings, "lr_drop") or ""
    if row.is_finished or epoch is None:
        return
    where = f"epoch {epoch.mean:.0f}{f' of {planned}' if planned else ''}"
    if drop.isdigit() and epoch.mean <= int(drop):
        yield f"{where}, before the learning-rate drop after {drop}: not comparable"
    else:
        yield f"{where}, not finished: not comparable"


def resumes(row: Row) -> Iterator[str]:
    """What a later start had otherwise than the first one."""
    counts = Counter(change for run in row.counted for change in run.changes)
    for change, count in counts.items():
        yield f"resumed with another {change} ({count} of {len(row.counted)} runs)"


def undefined(row: Row, metrics: Sequence[str]) -> Iterator[str]:
    """Why a metric has fewer numbers than runs, or none."""
    for name in metrics:
        counts = Counter(run.undefined[name] for run in row.counted if name in run.undefined)
        lacking = len(row.counted) - len(row.values(name)) - counts.total()
        counts["not stored"] = lacking if row.values(name) else 0
        for reason, count in (+counts).items():
            yield f"{name} left out in {count} of {len(row.counted)} runs ({reason})"


def note_differences(rows: Sequence[Row], reference: Row | None) -> None:
    """Note rows whose batch size, precision, data, code or device differ from the reference's, or else from most."""
    for fact in dict.fromkeys(fact for row in rows for run in row.counted for fact in run.facts):
        values = [{run.facts[fact] for run in row.counted if fact in run.facts} for row in rows]
        common = Counter(value for found in values for value in sorted(found)).most_common(1)[0][0]
        of_reference = values[next((i for i, row in enumerate(rows) if row is reference), 0)] if reference else set()
        if len(of_reference) == 1:
            common = next(iter(of_reference))
        cost = ": cost is not comparable" if fact == COST else ""
        for row, found in zip(rows, values, strict=True):
            if len(found) > 1:
                row.notes.append(f"{fact} differs between seeds: {' / '.join(sorted(found))}{cost}")
            elif found - {common}:
                row.notes.append(f"{fact} {next(iter(found))}, other rows {common}{cost}")
