"""Comparison of rows: differences to a baseline, published values, the best of a study. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.tables.cells import Cell, Column, Value, rounded
from analysis.tables.filters import lookup, parse_conditions
from analysis.tables.published import published_for
from analysis.tables.rows import Row
from fovea_detr.errors import UserError


def find_baseline(rows: Sequence[Row], text: str) -> Row:
    """The only row that matches `KEY=VALUE,...`. Raises UserError if none or several do."""
    keys = dict.fromkeys(key for row in rows for key in row.settings)
    asked = parse_conditions([text], ["study", *keys])
    found = [row for row in rows if all(c.holds(lookup(c.key, row.settings, {"study": row.study})) for c in asked)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"--baseline {text} matches none of the {len(rows)} rows")
    names = ", ".join(f"{row.study}/{row.name}" for row in found[:4]) + (", ..." if len(found) > 4 else "")
    raise UserError(f"--baseline {text} matches {len(found)} rows ({names}): add more conditions, KEY=VALUE,KEY=VALUE")


def with_differences(rows: Sequence[Row], baseline: Row, columns: Sequence[Column]) -> list[Column]:
    """The columns, each metric followed by its difference to the baseline's mean; fills the cells."""
    wider = []
    for column in columns:
        wider.append(column)
        if column.is_metric:
            name, base = f"{column.name}_difference", baseline.cells[column.name]
            wider.append(Column(name, f"Δ{column.name}", 3, signed=True, drop_order=column.drop_order))
            for row in rows:
                both = row.is_finished and baseline.is_finished  # otherwise the schedules differ, not the methods
                row.cells[name] = _minus(row.cells[column.name], base) if both else None
    return wider


def _minus(cell: Cell, base: Cell) -> Value | None:
    return Value(cell.mean - base.mean) if isinstance(cell, Value) and isinstance(base, Value) else None


def with_published(rows: Sequence[Row], columns: Sequence[Column]) -> list[Column]:
    """The columns, each metric followed by its published values if any row has one; fills the cells."""
    for row in rows:
        found = published_for(row.settings)
        for name, value in found.metrics.items() if found else ():
            row.cells[f"{name}_published"] = Value(value)
        if found and any(f"{column.name}_published" in row.cells for column in columns):
            row.notes.append(f"published: {found.source}")
    wider = []
    for column in columns:
        wider.append(column)
        published = Column(f"{column.name}_published", f"{column.title} publ.", 3, drop_order=column.drop_order)
        if column.is_metric and any(published.name in row.cells for row in rows):
            wider.append(published)
    return wider


def mark_best(rows: Sequence[Row], columns: Sequence[Column]) -> None:
    """Mark the largest value of each study; rows equal in the printed digits tie. Unfinished rows are ignored."""
    for column in (column for column in columns if column.is_metric):
        scores: dict[str, list[tuple[float, Row]]] = {}
        for row in rows:
            cell = row.cells[column.name]
            if isinstance(cell, Value) and row.is_finished:
                scores.setdefault(row.study, []).append((float(rounded(column, cell.mean)), row))
        for found in scores.values():
            best = max(score for score, _ in found)
            for score, row in found:
                if len(found) > 1 and score == best:
                    row.best.add(column.name)
