"""Shared parts of the figures: lines with their spread over seeds, and legends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from textwrap import fill
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import COLOURS, house_style, line_styles, new_figure
from analysis.tables.frames import over_seeds
from fovea_detr.config.groups import natural

GREY = "#777777"
WIDEST_NAME = 40  # characters in a line: a study of one row is named by all that was typed
LEGEND_ROW_INCHES = 0.15
OPEN = {"marker": "o", "markerfacecolor": "white", "linestyle": ""}  # of a variant that has not finished


def variants_of(table: pd.DataFrame) -> list[str]:
    return sorted(table["variant"].unique(), key=natural)


@contextmanager
def framed(table: pd.DataFrame, height: float, *, bars: bool = False) -> Iterator[Figure]:
    """A figure one text column wide, in the house's style, with the legends of spread and variants of the table.

    bars: the spread is a bar, and the variants are named at an axis.
    """
    with house_style():
        figure = new_figure(height=height)
        yield figure
        add_legend(figure, spread_handles(table, bars), "outside upper center")
        add_legend(figure, [] if bars else variant_handles(table))


def draw_lines(axes: Axes, epochs: pd.DataFrame, x: str, y: str) -> None:
    """The mean over seeds up to the last epoch that all have reached, and each seed as a faint line."""
    means = over_seeds(epochs, x, y)
    for variant, own in line_styles(variants_of(epochs)).items():
        lines = epochs.loc[epochs["variant"] == variant]
        style: Any = {"color": own["color"], "linestyle": own["linestyle"]}
        runs = [run for _, run in lines.groupby(["study", "run"])]
        for run in runs if len(runs) > 1 else ():
            axes.plot(run[x], run[y], linewidth=0.6, alpha=0.5, **style)
        line = means.loc[means["variant"] == variant]
        axes.plot(line["x"], line["mean"], clip_on=False, **style)
        low, high = line["mean"] - line["std"], line["mean"] + line["std"]
        axes.fill_between(line["x"], low, high, color=style["color"], alpha=0.18, linewidth=0)
        if not lines["finished"].all():
            end: Any = {**OPEN, "color": style["color"], "markersize": 4.5}
            axes.plot(line["x"].tail(1), line["mean"].tail(1), clip_on=False, **end)
    axes.xaxis.set_major_locator(MaxNLocator(integer=x == "epoch", nbins=6))
    axes.set_xlabel({"gpu_hours": "GPU-hours"}.get(x, x))
    axes.grid(axis="y")


def variant_handles(table: pd.DataFrame, order: Sequence[str] = (), marks: bool = False) -> list[Any]:
    """Legend handles of the table's variants, as lines or marks, in the styles that they have among `order`."""
    names = named_with_seeds(table)
    styles = {variant: own for variant, own in line_styles(order or variants_of(table)).items() if variant in names}
    without: Any = {"linestyle": ""} if marks else {"marker": ""}
    return [Line2D([], [], label=names[one], markersize=4, **(own | without)) for one, own in styles.items()]


def spread_handles(table: pd.DataFrame, bars: bool) -> list[Any]:
    """Legend handles of the band or bar and of the open marks, if there are any."""
    counts, handles = table.groupby("variant")["run"].nunique(), []
    label = f"± 1 standard deviation over {'the' if counts.nunique() > 1 else counts.max()} seeds"
    if counts.max() > 1:
        bar = Line2D([], [], color=COLOURS[0], label=f"{label} (ticks)")
        handles.append(bar if bars else Patch(color=GREY, alpha=0.3, linewidth=0, label=label))
    return handles + open_handles(table)


def open_handles(table: pd.DataFrame) -> list[Any]:
    style: Any = {**OPEN, "color": GREY, "label": "not finished: not comparable"}
    return [] if table["finished"].all() else [Line2D([], [], **style)]


def add_legend(
    figure: Figure,
    handles: Sequence[Any],
    where: Literal["outside lower center", "outside upper center"] = "outside lower center",
) -> None:
    """Add a legend in as many columns as fit; the figure grows by its height."""
    if not handles:
        return
    lines = [handle.get_label().split("\n") for handle in handles]
    widest = max(len(line) for own in lines for line in own)
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.055 * widest + 0.5))))
    rows = -(-len(handles) // columns) * max(map(len, lines))
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW_INCHES * rows + 0.1)
    figure.legend(handles=handles, loc=where, frameon=False, ncols=columns)


def named_with_seeds(table: pd.DataFrame) -> dict[str, str]:
    """The variants, each with its number of seeds if this is not the same for all, in lines of WIDEST_NAME."""
    counts = table.groupby("variant")["run"].nunique()
    names = {name: f"{name} (n={counts[name]})" if counts.nunique() > 1 else name for name in variants_of(table)}
    return {name: fill(text, WIDEST_NAME) for name, text in names.items()}
