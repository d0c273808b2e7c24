"""Learning curves, cost and bars of the page, in coordinates of the drawing; page.html draws them. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from analysis.tables.cells import Column, Value, mean_of, metric_column, show
from analysis.tables.frames import over_seeds
from analysis.tables.table import Table
from analysis.tables.verdicts import errors_of

SIZES = tuple(metric_column(f"AP_{size}") for size in ("small", "medium", "large"))
Points = Sequence[tuple[float, float, float]]  # x, y, and its standard deviation
Bars = Mapping[str, Sequence[tuple[str, float]]]  # by label of the row: the printed text, and the width in per cent


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

    width, height, left, right, top, bottom = 420, 260, 46, 410, 10, 226  # of the drawing, and its axes' ends

    @cached_property
    def x_ticks(self) -> list[float]:
        places = [x for curve in self.curves.values() for x, _, _ in curve]
        return ticks(0 if self.is_scatter else min(places), max(places))

    @cached_property
    def y_ticks(self) -> list[float]:
        points = [(y, std) for curve in self.curves.values() for _, y, std in curve]
        points += [(y, 0) for y, _ in self.levels]
        return ticks(min(y - std for y, std in points), max(y + std for y, std in points))

    def x(self, value: float) -> float:
        return _place(value, self.x_ticks, self.left, self.right)

    def y(self, value: float) -> float:
        return _place(value, self.y_ticks, self.bottom, self.top)

    def line(self, points: Points) -> str:
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y, _ in points)

    def band(self, points: Points) -> str:
        """Of ± one standard deviation; empty without one."""
        both = [(x, y + std, 0) for x, y, std in points] + [(x, y - std, 0) for x, y, std in points[::-1]]
        return self.line(both) if any(std for _, _, std in points) else ""


def _place(value: float, marks: Sequence[float], start: float, end: float) -> float:
    return round(start + (value - marks[0]) / (marks[-1] - marks[0]) * (end - start), 3)


def ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that enclose `low` to `high`."""
    raw = ((high - low) or abs(high) or 1.0) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def charts(table: Table, epochs: pd.DataFrame) -> list[Chart]:
    """Metric and loss by epoch, and the metric over the cost: those for which there are numbers."""
    metric = table.first_metric
    early = frozenset(row.label for row in table.rows if not row.is_finished)
    published = {row.label: row.cells.get(f"{metric}_published") for row in table.rows}
    levels = {100 * cell.mean: label for label, cell in published.items() if isinstance(cell, Value)}
    texts = [(value, f"published {value:.1f}: {label}") for value, label in levels.items()]
    found = []
    if scores := _points(epochs, metric, 100):
        found.append(Chart(f"{metric} by epoch", "epoch", scores, texts, open=early))
    if losses := _points(epochs, "loss", 1):
        found.append(Chart("loss by epoch", "epoch", losses, open=early, digits=3))
    return [*found, *cost(table, metric)]


def _points(epochs: pd.DataFrame, name: str, factor: float) -> dict[str, Points]:
    if name not in epochs or epochs[name].isna().all():
        return {}
    means = over_seeds(epochs, "epoch", name).fillna({"std": 0})
    means[["mean", "std"]] *= factor
    points = means.set_index("variant")[["x", "mean", "std"]]
    return {str(one): list(map(tuple, own.to_numpy())) for one, own in points.groupby(level=0, sort=False)}


def cost(table: Table, metric: str) -> list[Chart]:
    """Finished rows by cost and metric; the steps join those that none beats at less cost."""
    finished = [row for row in table.rows if row.is_finished and row.mean(metric)]
    unit, name = ("gpu_hours", "GPU-hours") if all(row.mean("gpu_hours") for row in finished) else ("minutes",) * 2
    means = {row.label: (row.mean(unit), row.mean(metric)) for row in finished}
    places = {label: (x.mean, 100 * y.mean, 0.0) for label, (x, y) in means.items() if x and y}
    if len(places) < 2:
        return []
    steps: list[tuple[float, float, float]] = []
    for x, y, _ in sorted(places.values(), key=lambda place: (place[0], -place[1])):
        if not steps or y > steps[-1][1]:
            steps += [(x, steps[-1][1], 0.0)] if steps else []
            steps.append((x, y, 0.0))
    steps.append((max(x for x, _, _ in places.values()), steps[-1][1], 0.0))
    title = f"{metric} over {name}; the line joins those that none beats at less cost"
    return [Chart(title, name, {label: [one] for label, one in places.items()}, steps=steps, is_scatter=True)]


def bars(table: Table) -> Iterator[tuple[str, list[str], Bars]]:
    """The tables of bars for which there are numbers: title, headings, and bars by label of the row."""
    sizes = {row.label: [row.mean(column.name) for column in SIZES] for row in table.rows}
    errors = {row.label: errors_of(row) for row in table.rows}
    names = list(next(filter(None, errors.values()), {}))
    types = {label: [mean_of(found.get(name, [])) for name in names] for label, found in errors.items()}
    tables: dict[str, Any] = {"AP by size of the object": (SIZES, sizes)}
    tables["What the errors cost: AP50 lost to each of TIDE's types"] = (list(map(metric_column, names)), types)
    for title, (columns, found) in tables.items():
        if drawn := _bars(columns, found):
            yield title, [column.title for column in columns], drawn


def _bars(columns: Sequence[Column], found: Mapping[str, Sequence[Value | None]]) -> Bars:
    most = max((cell.mean for cells in found.values() for cell in cells if cell), default=0) or 1
    return {
        label: [(show(c, cell), 100 * cell.mean / most if cell else 0) for c, cell in zip(columns, cells, strict=True)]
        for label, cells in found.items()
        if any(cells)
    }
