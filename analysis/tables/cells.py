"""Columns and cells of a table for people; the only place where numbers are rounded. Imports no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fovea_detr.runs.folder import ALL_METRICS

NOTHING = "-"
WIDEST = 1.0  # interval of a difference, in fractions: 100 AP; a wider one tells nothing


@dataclass(frozen=True)
class Value:
    """The mean over n runs, where the row says `of`. std: the sample standard deviation; NaN for a single run.

    low, high: the 95 % interval of a difference, NaN if there is none.
    """

    mean: float
    std: float = math.nan
    n: int = 1
    of: int = 1
    low: float = math.nan
    high: float = math.nan


Cell = Value | str | None


@dataclass(frozen=True)
class Column:
    """name: in data files; title: in printed tables. digits: after the decimal point, None for text.

    is_metric: higher is better. spread: printed as mean ± std. signed: with + or -. factor: 100 for per cent.
    drop_order: on a narrow terminal, columns with the highest number are dropped first; 0 is never dropped.
    """

    name: str
    title: str
    digits: int | None = None
    signed: bool = False
    is_metric: bool = False
    spread: bool = False
    drop_order: int = 0
    factor: float = 1

    @property
    def is_number(self) -> bool:
        return self.digits is not None

    def difference(self, order: int = 0) -> Column:
        """Of two numbers of this column; with a digit of its own, for the numbers are rounded before they are read."""
        own = Column(f"{self.name}_difference", f"Δ{self.title}", (self.digits or 0) + 1, signed=True)
        return replace(own, drop_order=order, factor=self.factor)


def metric_column(name: str, order: int = 0, *, percent: bool = True) -> Column:
    """AP as the field writes it, 41.0; else as a fraction, 0.410."""
    digits, factor = (1, 100) if percent else (3, 1)
    return Column(name, name, digits, is_metric=True, spread=True, drop_order=order, factor=factor)


BEST = "best_AP"
NUMBERS = (
    Column("epochs", "epochs", 0, drop_order=22),
    Column("total_batch", "total batch", 0, drop_order=25),
    Column("gpu_hours", "GPU-hours", 1, spread=True, drop_order=24),
    Column("minutes", "minutes", 1, spread=True, drop_order=26),
    Column("images_per_second", "images/s", 1, spread=True, drop_order=27),
    Column("inference_ms", "ms/image", 1, spread=True, drop_order=28),
    Column("peak_gib", "peak GiB", 1, spread=True, drop_order=29),
    Column("parameters", "parameters", 0, drop_order=30),
)
STUDY, RUN, STATE, NOTES = (Column(name, name) for name in ("study", "run", "state", "notes"))
N = Column("n", "n", 0)
RESERVED = {column.name for column in (STUDY, RUN, STATE, N, NOTES, *NUMBERS)} | {*ALL_METRICS, BEST}


def mean_of(values: Sequence[float], of: int | None = None) -> Value | None:
    """Mean and sample standard deviation (n - 1); None without values."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else math.nan
    return Value(statistics.fmean(values), std, len(values), len(values) if of is None else of)


def rounded(column: Column, number: float) -> str:
    """The number with the column's digits and sign; never `-0.0`."""
    assert column.digits is not None
    text = f"{number * column.factor:{'+' if column.signed else ''}.{column.digits}f}"
    return text.replace("-", "+" if column.signed else "") if float(text) == 0 else text


def ends(column: Column, low: float, high: float) -> str:
    """`[-0.11, +0.65]`; two or three seeds may give an interval that holds nearly every difference there can be."""
    return f"[{rounded(column, low)}, {rounded(column, high)}]" if high - low <= WIDEST else "[wider than 100 AP]"


def show(column: Column, cell: Cell) -> str:
    """`41.2 ± 0.3`, `41.2 (n 2)` where other runs have no number, `+0.27 [-0.11, +0.65]`, `type3`, `-`."""
    if not isinstance(cell, Value):
        return cell or NOTHING
    text = rounded(column, cell.mean)
    if column.spread and not math.isnan(cell.std):
        text += f" ± {rounded(column, cell.std)}"
    if not math.isnan(cell.low) and cell.high - cell.low <= WIDEST:
        text += f" {ends(column, cell.low, cell.high)}"
    return text if cell.n == cell.of else f"{text} (n {cell.n})"


def data(column: Column, cell: Cell) -> dict[str, float | str | None]:
    """The unrounded numbers of a cell, by the names of a data file; metrics as fractions."""
    if not column.is_number:
        return {column.name: cell if isinstance(cell, str) else None}
    value = cell if isinstance(cell, Value) else Value(math.nan)
    found: dict[str, float | str | None] = {column.name: value.mean}
    if column.spread:
        found[f"{column.name}_std"] = value.std
    if column.signed:
        found |= {f"{column.name}_low": value.low, f"{column.name}_high": value.high}
    return found
