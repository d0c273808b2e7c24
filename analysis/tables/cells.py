"""Columns and cells of a table; the only place where numbers are rounded. Imports no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

NOTHING = "-"


@dataclass(frozen=True)
class Value:
    """The mean over n runs. std: the sample standard deviation; NaN for a single run."""

    mean: float
    std: float = math.nan
    n: int = 1


Cell = Value | str | None


@dataclass(frozen=True)
class Column:
    """name: in data files; title: in printed tables. digits: after the decimal point, None for text.

    is_metric: higher is better, the best value is bold. spread: printed as mean ± std. signed: with + or -.
    drop_order: on a narrow terminal, columns with the highest number are dropped first; 0 is never dropped.
    """

    name: str
    title: str
    digits: int | None = None
    signed: bool = False
    is_metric: bool = False
    spread: bool = False
    drop_order: int = 0

    @property
    def is_number(self) -> bool:
        return self.digits is not None


def mean_of(values: Sequence[float]) -> Value | None:
    """Mean and sample standard deviation (n - 1); None without values."""
    if not values:
        return None
    return Value(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan, len(values))


def rounded(column: Column, number: float) -> str:
    """The number with the column's digits and sign; never `-0.000`."""
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
    """Mean and std as separate texts for data files, with the digits of `show`; None for an empty cell."""
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
