"""Learning curves, cost and bars of the page, in coordinates of the drawing; page.html draws them. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from analysis.tables.cells import Column, Value, mean_of, metric_column, show
from analysis.tables.frames import over_seeds
from analysis.tables.table import Table
from analysis.tables.verdicts import errors_of

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 260, 46, 10, 10, 34
SIZES = tuple(metric_column(f"AP_{size}") for size in ("small", "medium", "large"))
Points = Sequence[tuple[float, float, float]]  # x, y, and its standard deviation


@dataclass(frozen=True)
class Chart:
    """curves: points by label of the row. levels: published values, as (value, source). ends: open is not finished."""

    title: str
    x_label: str
    curves: Mapping[str, Points]
    levels: Sequence[tuple[float, str]] = ()
    steps: Points = ()
    open: frozenset[str] = frozenset()
    is_scatter: bool = False
    digits: int = 1
    x_ticks: list[float] = field(init=False)
    y_ticks: list[float] = field(init=False)

    def __post_init__(self) -> None:
        points = [point for curve in self.curves.values() for point in curve]
        lows, highs = zip(
            *((y - std, y + std) for _, y, std in [*points, *((0, y, 0) for y, _ in self.levels)]), strict=True
        )
        places = [x for x, _, _ in points]
        object.__setattr__(self, "y_ticks", ticks(min(lows), max(highs)))
        object.__setattr__(self, "x_ticks", ticks(0 if self.is_scatter else min(places), max(places)))

    def x(self, value: float) -> float:
        return round(LEFT + _share(value, self.x_ticks) * (WIDTH - LEFT - RIGHT), 3)

    def y(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - _share(value, self.y_ticks) * (HEIGHT - TOP - BOTTOM), 3)

    def line(self, points: Points) -> str:
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y, _ in points)

    def band(self, points: Points) -> str:
        """Of ± one standard deviation; empty without one."""
        upper = [(x, y + std, 0.0) for x, y, std in points]
        lower = [(x, y - std, 0.0) for x, y, std in reversed(points)]
        return self.line([*upper, *lower]) if any(std for _, _, std in points) else ""


def _share(value: float, marks: Sequence[float]) -> float:
    return (value - marks[0]) / (marks[-1] - marks[0])


def ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that enclose `low` to `high`."""
    span = (high - low) or abs(high) or 1.0
    raw = span / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def charts(table: Table, epochs: pd.DataFrame) -> list[Chart]:
    """Metric and loss by epoch, and the metric over the cost: those for which there are numbers."""
    metric = next((column.name for column in table.every if column.is_metric), "AP")
    unfinished = frozenset(row.label for row in table.rows if not row.is_finished)
    levels = {
        cell.mean * 100: row for row in table.rows if isinstance(cell := row.cells.get(f"{metric}_published"), Value)
    }
    texts = [(value, f"published {value:.1f}: {row.label}") for value, row in levels.items()]
    found = []
    for name, factor, lines in ((metric, 100, texts), ("loss", 1, [])):
        points = _points(epochs, name, factor)
        if points:
            found.append(
                Chart(f"{name} by epoch", "epoch", points, lines, open=unfinished, digits=1 if lines is texts else 3)
            )
    return [*found, *cost(table, metric)]


def _points(epochs: pd.DataFrame, name: str, factor: float) -> dict[str, Points]:
    if name not in epochs or epochs[name].isna().all():
        return {}
    means = over_seeds(epochs, "epoch", name).fillna({"std": 0})
    means[["mean", "std"]] *= factor
    return {
        str(variant): list(own[["x", "mean", "std"]].itertuples(index=False, name=None))
        for variant, own in means.groupby("variant", sort=False)
    }


def cost(table: Table, metric: str) -> list[Chart]:
    """Finished rows by cost and metric; the steps join those that none beats at less cost."""
    finished = [row for row in table.rows if row.is_finished and row.mean(metric)]
    unit = "gpu_hours" if all(row.mean("gpu_hours") for row in finished) else "minutes"
    places = [
        (x.mean, 100 * y.mean, row.label) for row in finished if (x := row.mean(unit)) and (y := row.mean(metric))
    ]
    if len(places) < 2:
        return []
    front: list[tuple[float, float]] = []
    for x, y, _ in sorted(places, key=lambda place: (place[0], -place[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    ends = [*(x for x, _ in front[1:]), max(x for x, _, _ in places)]
    steps = [point for (x, y), end in zip(front, ends, strict=True) for point in ((x, y, 0.0), (end, y, 0.0))]
    name = {"gpu_hours": "GPU-hours"}.get(unit, unit)
    curves = {label: [(x, y, 0.0)] for x, y, label in places}
    title = f"{metric} over {name}; the line joins those that none beats at less cost"
    return [Chart(title, name, curves, steps=steps, is_scatter=True)]


@dataclass(frozen=True)
class Bars:
    """A table of bars. rows: the label, and for each column the printed text and the width in per cent."""

    title: str
    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]


def bars(table: Table) -> list[Bars]:
    sizes = {row.label: [row.mean(column.name) for column in SIZES] for row in table.rows}
    errors = {row.label: errors_of(row) for row in table.rows}
    names = list(next((found for found in errors.values() if found), {}))
    types = {label: [mean_of(found.get(name, [])) for name in names] for label, found in errors.items()}
    whole = [
        _bars("AP by size of the object", SIZES, sizes),
        _bars(
            "What the errors cost: AP50 lost to each of TIDE's types", [metric_column(name) for name in names], types
        ),
    ]
    return [one for one in whole if one.rows]


def _bars(title: str, columns: Sequence[Column], found: Mapping[str, Sequence[Value | None]]) -> Bars:
    most = max((cell.mean for cells in found.values() for cell in cells if cell), default=0) or 1
    rows = [
        (
            label,
            [(show(c, cell), 100 * cell.mean / most if cell else 0) for c, cell in zip(columns, cells, strict=True)],
        )
        for label, cells in found.items()
        if any(cells)
    ]
    return Bars(title, [column.title for column in columns], rows)
