"""In which order rows stand. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from analysis.tables.cells import Column, Value
from analysis.tables.filters import full_key
from analysis.tables.rows import Row


def sorted_rows(rows: list[Row], columns: Sequence[Column], names: str, reverse: bool) -> list[Row]:
    """By the columns named, scores from the best down, everything else upwards; what has no value comes last."""
    known = {column.title: column for column in columns} | {column.name: column for column in columns}
    for name in reversed(names.split(",")):
        column = known[full_key(name, known)]
        falling = (column.spread or column.signed) != reverse
        with_value = [row for row in rows if row.cells.get(column.name) is not None]
        without = [row for row in rows if row.cells.get(column.name) is None]
        rows = sorted(with_value, key=lambda row, column=column: _order(row, column), reverse=falling) + without
    return rows


def _order(row: Row, column: Column) -> list[tuple[float, str]]:
    cell = row.cells[column.name]
    return [(cell.mean, "")] if isinstance(cell, Value) else natural(cell or "")


def natural(cell: str) -> list[tuple[float, str]]:
    """Sorts 4, 8, 16 as numbers, wherever they stand in a text."""
    parts = re.split(r"(\d+(?:\.\d+)?)", cell)
    return [(float(part), "") if i % 2 else (math.inf, part) for i, part in enumerate(parts) if part]
