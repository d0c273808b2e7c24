"""Comparison of rows: the baseline, differences, published values, the best of a study. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from analysis.tables.cells import Cell, Column, Value
from analysis.tables.filters import lookup, parse_conditions
from analysis.tables.published import published_for
from analysis.tables.rows import Row
from fovea_detr.errors import UserError

if TYPE_CHECKING:
    from analysis.statistics.verdict import Difference


def find_row(rows: Sequence[Row], text: str, option: str = "--baseline ") -> Row:
    """The only row of this label, or that matches `KEY=VALUE,...`. Raises UserError if none or several do."""
    found = [row for row in rows if row.label == text]
    if not found and not any(sign in text for sign in "=<>"):
        known = "; ".join(row.label for row in rows[:8]) + ("; ..." if len(rows) > 8 else "")
        raise UserError(f"{option}{text}: there is no such row; name it KEY=VALUE, or as in {known}")
    if not found:
        keys = dict.fromkeys(key for row in rows for key in row.settings)
        asked = parse_conditions([text], ["study", *keys])
        found = [row for row in rows if all(c.holds(lookup(c.key, row.settings, {"study": row.study})) for c in asked)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"{option}{text} matches none of the {len(rows)} rows")
    names = "; ".join(row.label for row in found[:4]) + ("; ..." if len(found) > 4 else "")
    raise UserError(f"{option}{text} matches {len(found)} rows ({names}): add more conditions, KEY=VALUE,KEY=VALUE")


def with_differences(
    rows: Sequence[Row], baseline: Row, columns: Sequence[Column], verdicts: Mapping[str, Mapping[str, Difference]]
) -> list[Column]:
    """The columns, each metric followed by its difference to the baseline, interval and verdict; fills the cells.

    verdicts: by metric and label of the row.
    """
    wider = []
    for column in columns:
        wider.append(column)
        if not column.is_metric:
            continue
        difference, words = column.difference(column.drop_order), f"{column.name}_verdict"
        wider.append(difference)
        found = verdicts.get(column.name, {})
        if found:
            wider.append(Column(words, f"{column.title} is", drop_order=column.drop_order + 1))
        for row in rows:
            both = row.is_finished and baseline.is_finished  # otherwise the schedules differ, not the methods
            delta = _minus(row.cells[column.name], baseline.cells[column.name]) if both else None
            if delta and (told := found.get(row.label)):
                interval = told.combined_interval or told.seeds_interval or told.images_interval
                delta = replace(delta, low=interval.low, high=interval.high) if interval else delta
                row.cells[words] = told.words
            row.cells[difference.name] = delta if row is not baseline else None
        baseline.cells[words if found else difference.name] = "baseline"
    return wider


def _minus(cell: Cell, base: Cell) -> Value | None:
    return Value(cell.mean - base.mean) if isinstance(cell, Value) and isinstance(base, Value) else None


def with_published(rows: Sequence[Row], columns: Sequence[Column]) -> list[Column]:
    """The columns, each metric followed by its published values if any row has one; fills the cells."""
    for row in rows:
        found = published_for(row.settings, row.counted)
        for name, value in found.metrics.items() if found else ():
            row.cells[f"{name}_published"] = Value(value)
        if found and any(f"{column.name}_published" in row.cells for column in columns):
            row.notes.append(f"published: {found.source}")
    wider = []
    for column in columns:
        wider.append(column)
        published = replace(
            column, name=f"{column.name}_published", title=f"{column.title} publ.", spread=False, is_metric=False
        )
        if column.is_metric and any(published.name in row.cells for row in rows):
            wider.append(published)
    return wider
