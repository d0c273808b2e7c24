"""Comparison of rows: the baseline, differences, published values, the best of a study. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from analysis.reading.settings import SEED
from analysis.tables.cells import Column, Value
from analysis.tables.filters import parse_conditions
from analysis.tables.published import published_for
from analysis.tables.rows import Row
from fovea_detr.errors import UserError

if TYPE_CHECKING:
    from analysis.statistics.seeds import Interval
    from analysis.statistics.verdict import Difference


def find_row(rows: Sequence[Row], text: str, option: str = "--baseline ") -> Row:
    """The only row of this label, of parts of it, or that matches `KEY=VALUE,...`. UserError: none, or several."""
    found = [row for row in rows if row.label == text]
    found = found or [row for row in rows if set(text.split(", ")) <= set(row.label.split(", "))]
    if not found and not any(sign in text for sign in "=<>"):
        known = "; ".join(row.label for row in rows[:8]) + ("; ..." if len(rows) > 8 else "")
        raise UserError(f"{option}{text}: there is no such row; name it KEY=VALUE, or as in {known}")
    if not found:
        keys = dict.fromkeys(key for row in rows for key in row.settings)
        if SEED not in keys and re.search(rf"(^|,){SEED}\b", text):
            raise UserError(f"{option}{text}: a row is all its seeds: leave {SEED} out")
        asked = parse_conditions([text], ["study", *keys])
        found = [row for row in rows if all(c.holds(({"study": row.study} | row.settings).get(c.key)) for c in asked)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"{option}{text} matches none of the {len(rows)} rows")
    names = "; ".join(row.label for row in found[:4]) + ("; ..." if len(found) > 4 else "")
    raise UserError(f"{option}{text} matches {len(found)} rows ({names}): add more conditions, KEY=VALUE,KEY=VALUE")


def interval_of(told: Difference) -> Interval | None:
    """The widest that is known: of seeds and images, of seeds, of images."""
    return told.combined_interval or told.seeds_interval or told.images_interval


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
        found = verdicts.get(column.name, {})
        wider += [difference, Column(words, f"{column.title} is", drop_order=column.drop_order + 1)][: 1 + bool(found)]
        for row in rows:
            told = found.get(row.label)
            untested = "another study: not tested" if found and row.study != baseline.study else None
            row.cells[words] = told.words if told else untested
            row.cells[difference.name] = _minus(row, baseline, column, told) if row is not baseline else None
        baseline.cells[words if found else difference.name] = "baseline"
    return wider


def _minus(row: Row, baseline: Row, column: Column, told: Difference | None) -> Value | None:
    cell, base = row.cells[column.name], baseline.cells[column.name]
    if not (row.is_finished and baseline.is_finished and isinstance(cell, Value) and isinstance(base, Value)):
        return None  # otherwise the schedules differ, not the methods
    low, high = (told and interval_of(told)) or (math.nan, math.nan)
    return Value(cell.mean - base.mean, low=low, high=high)


def with_published(rows: Sequence[Row], columns: Sequence[Column]) -> list[Column]:
    """The columns, each metric followed by its published values if any row has one; fills the cells."""
    shown = {column.name for column in columns if column.is_metric}
    for row in rows:
        found = published_for(row.settings, row.counted)
        row.cells |= {f"{name}_published": Value(value) for name, value in (found.metrics if found else {}).items()}
        row.notes += [f"published: {found.source}"] if found and shown & found.metrics.keys() else []
    wider = []
    for column in columns:
        name = f"{column.name}_published"
        known = column.is_metric and any(name in row.cells for row in rows)
        own = replace(column, name=name, title=f"{column.title} publ.", spread=False, is_metric=False)
        wider += [column, own] if known else [column]
    return wider
