"""What stands in a table: columns, values with their spread, and the one place where a number is rounded. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

NOTHING = "-"

# COCOeval's twelve by the names that a run writes; the same as in coco_metrics.py, which cannot be read without torch.


@dataclass(frozen=True)
class Value:
    """The mean over n runs. std: their sample standard deviation; NaN for a single run, which has no spread."""

    mean: float
    std: float = math.nan
    n: int = 1


Cell = Value | str | None


@dataclass(frozen=True)
class Column:
    """name: in data files; title: for people. digits: of a number, None for text.

    best: the largest is the best, and is set in bold. room: columns of the highest number leave a narrow screen first.
    """

    name: str
    title: str
    digits: int | None = None
    signed: bool = False
    best: bool = False
    spread: bool = False
    room: int = 0

    @property
    def is_number(self) -> bool:
        return self.digits is not None


def mean_of(values: Sequence[float]) -> Value | None:
    """± is the sample standard deviation (n - 1), as of seeds drawn from all there could be."""
    if not values:
        return None
    return Value(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan, len(values))


def rounded(column: Column, number: float) -> str:
    """The only place where a number becomes digits. No `-0.000`."""
    assert column.digits is not None
    text = f"{number:{'+' if column.signed else ''}.{column.digits}f}"
    return text.replace("-", "+" if column.signed else "") if float(text) == 0 else text


def show(column: Column, cell: Cell) -> str:
    """`0.412 ± 0.003`, `type3`, `-`."""
    if isinstance(cell, Value):
        text = rounded(column, cell.mean)
        return f"{text} ± {rounded(column, cell.std)}" if column.spread and not math.isnan(cell.std) else text
    return cell or NOTHING


def data_names(column: Column) -> list[str]:
    return [column.name, f"{column.name}_std"] if column.spread else [column.name]


def data_texts(column: Column, cell: Cell) -> list[str | None]:
    """The same digits, spread apart for data files; None where there is nothing."""
    if not isinstance(cell, Value):
        return [cell or None, *[None] * column.spread]
    std = None if math.isnan(cell.std) else rounded(column, cell.std)
    return [rounded(column, cell.mean), *[std] * column.spread]


def data_values(column: Column, cell: Cell) -> list[float | int | str | None]:
    """`data_texts` as numbers."""
    texts = data_texts(column, cell)
    if not column.is_number:
        return [*texts]
    return [None if text is None else float(text) if column.digits else int(text) for text in texts]
