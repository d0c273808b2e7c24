"""Learning curves as inline SVG: the page needs no plotting library, font or network. Imports no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from analysis.reading.outcome import score
from analysis.reading.runs import Run
from analysis.tables.rows import Row
from fovea_detr.runs.state import number

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 260, 46, 10, 10, 34
COLOURS = 8
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # curves differ without colour, too


@dataclass(frozen=True)
class Curve:
    """points: (epoch, mean, standard deviation over seeds). style: index of colour and dash."""

    name: str
    points: list[tuple[float, float, float]]
    style: int


def curve(name: str, runs: Sequence[Run], key: str, style: int) -> Curve:
    """Mean and standard deviation of a metric or loss over the runs that have reached each epoch."""
    values: dict[float, list[float]] = {}
    for run in runs:
        for line in run.history:
            if not math.isnan(number(line.get("epoch"))) and not math.isnan(score(line.get(key))):
                values.setdefault(number(line["epoch"]), []).append(score(line[key]))
    points = [(epoch, statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else 0.0) for epoch, v in values.items()]
    return Curve(name, sorted(points), style)


def best_rows(rows: Sequence[Row], metric: str) -> list[Row]:
    """At most COLOURS rows, in table order: finished ones are preferred, then the highest metric."""
    scored = [(row.is_finished, value.mean, row) for row in rows if (value := row.mean(metric)) is not None]
    best = {id(row) for _, _, row in sorted(scored, key=lambda item: item[:2], reverse=True)[:COLOURS]}
    return [row for row in rows if id(row) in best]


def chart(title: str, curves: Sequence[Curve]) -> str:
    """A figure with axes, bands of ± one standard deviation, lines and a legend; an empty text without points."""
    drawn = [curve for curve in curves if curve.points]
    if not drawn:
        return ""
    points = [point for curve in drawn for point in curve.points]
    first, last = min(p[0] for p in points), max(p[0] for p in points)
    y_ticks = ticks(min(mean - std for _, mean, std in points), max(mean + std for _, mean, std in points))
    scale = Scale(first, last, y_ticks[0], y_ticks[-1])
    x_ticks = [tick for tick in ticks(first, last) if tick == int(tick)]
    parts = [axis_lines(scale, x_ticks, y_ticks), *(band(scale, c) + line(scale, c) for c in drawn)]
    legend = "".join(f"<li>{swatch(c.style)}{escape(c.name)}</li>" for c in drawn)
    return (
        f'<figure><figcaption>{escape(title)} by epoch</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)} by epoch">{"".join(parts)}</svg><ul class="legend">{legend}</ul></figure>'
    )


@dataclass(frozen=True)
class Scale:
    """Data coordinates -> coordinates of the drawing. left, right: epochs; low, high: values."""

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        share = (value - self.left) / ((self.right - self.left) or 1.0)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that enclose `low` to `high`."""
    span = (high - low) or abs(high) or 1.0
    raw = span / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def axis_lines(scale: Scale, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    parts = []
    for value in y_ticks:
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        if scale.left <= value <= scale.right:
            parts.append(f'<text x="{scale.x(value)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">epoch</text>')
    return "".join(parts)


def band(scale: Scale, curve: Curve) -> str:
    if not any(std for _, _, std in curve.points):
        return ""
    upper = [f"{scale.x(x)},{scale.y(mean + std)}" for x, mean, std in curve.points]
    lower = [f"{scale.x(x)},{scale.y(mean - std)}" for x, mean, std in reversed(curve.points)]
    return f'<polygon class="band" style="fill:var(--s{curve.style % COLOURS})" points="{" ".join(upper + lower)}"/>'


def line(scale: Scale, curve: Curve) -> str:
    """A polyline, or a dot for a single point."""
    places = [(scale.x(x), scale.y(mean)) for x, mean, _ in curve.points]
    last, title = curve.points[-1], escape(curve.name)
    title = f"<title>{title}: {last[1]:.3f} after epoch {last[0]:.0f}</title>"
    if len(places) == 1:
        dot = f'cx="{places[0][0]}" cy="{places[0][1]}" r="4" style="fill:var(--s{curve.style % COLOURS})"'
        return f"<circle {dot}>{title}</circle>"
    points = " ".join(f"{x},{y}" for x, y in places)
    return f'<polyline class="curve" {_stroke(curve.style)} points="{points}">{title}</polyline>'


def swatch(style: int) -> str:
    shape = f'<line class="curve" {_stroke(style)} x1="0" x2="28" y1="4" y2="4"/>'
    return f'<svg viewBox="0 0 28 8" aria-hidden="true">{shape}</svg>'


def _stroke(style: int) -> str:
    dash = DASHES[style % len(DASHES)]
    return f'style="stroke:var(--s{style % COLOURS}){f";stroke-dasharray:{dash}" if dash else ""}"'
