"""Shared parts of the figures: lines and dots with their spread over seeds, labels and legends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import COLOURS, line_styles
from analysis.tables.frames import over_seeds
from fovea_detr.config.groups import natural

UNFINISHED = "not finished: not comparable"
SPREAD = "± 1 standard deviation over {} seeds"
GREY = "#777777"
LEGEND_ROW_INCHES = 0.15


def variants_of(table: pd.DataFrame) -> list[str]:
    return sorted(table["variant"].unique(), key=natural)


def draw_lines(axes: Axes, epochs: pd.DataFrame, x: str, y: str) -> None:
    """The mean over seeds up to the last epoch that all have reached, and each seed as a faint line."""
    means = over_seeds(epochs, x, y)
    for variant, own in line_styles(variants_of(epochs)).items():
        runs = runs_of(epochs, variant)
        style: dict[str, Any] = {"color": own["color"], "linestyle": own["linestyle"]}
        for run in runs if len(runs) > 1 else ():
            axes.plot(run[x], run[y], linewidth=0.6, alpha=0.5, **style)
        line = means.loc[means["variant"] == variant]
        axes.plot(line["x"], line["mean"], clip_on=False, **style)
        low, high = line["mean"] - line["std"], line["mean"] + line["std"]
        axes.fill_between(line["x"], low, high, color=style["color"], alpha=0.18, linewidth=0)
        if not all(run["finished"].all() for run in runs):
            end, open_mark = line.tail(1), {"marker": "o", "markerfacecolor": "white", "markersize": 4.5}
            axes.plot(end["x"], end["mean"], clip_on=False, color=style["color"], **open_mark)
    axes.xaxis.set_major_locator(MaxNLocator(integer=x == "epoch", nbins=6))
    axes.grid(axis="y")


def draw_dots(axes: Axes, runs: pd.DataFrame, metric: str) -> None:
    """Per variant: a dot at the mean with its number, ± 1 standard deviation, and a tick for each seed."""
    for row, variant in enumerate(variants_of(runs)):
        own = runs.loc[runs["variant"] == variant]
        values, mean = own[metric], own[metric].mean()
        if len(values) > 1:
            axes.plot(values, [row] * len(values), "|", color=GREY, markersize=8, markeredgewidth=0.8)
            axes.errorbar(mean, row, xerr=values.std(), color=COLOURS[0], elinewidth=1.4)
        face = "white" if not own["finished"].all() else COLOURS[0]
        axes.plot(mean, row, "o", color=COLOURS[0], markerfacecolor=face, markersize=5)
        spread = f" ± {values.std():.1f}" if len(values) > 1 else ""
        where: Any = {"textcoords": "offset points", "ha": "center", "fontsize": 6.5}
        axes.annotate(f"{mean:.1f}{spread}", (mean, row), (0, 5), **where)


def variant_handles(table: pd.DataFrame, order: Sequence[str] = (), marks: bool = False) -> list[Any]:
    """Legend handles of the table's variants, as lines or marks, in the styles that they have among `order`."""
    variants, handles = variants_of(table), []
    for variant, own in line_styles(order or variants).items():
        if variant in variants:
            style: Any = {**own, "linestyle": ""} if marks else {**own, "marker": ""}
            handles.append(Line2D([], [], label=name_with_seeds(variant, table), markersize=4, **style))
    return handles


def spread_handles(table: pd.DataFrame, band: bool) -> list[Any]:
    """Legend handles of the band or bar and of the open marks, if there are any."""
    counts, handles = table.groupby("variant")["run"].nunique(), []
    label = SPREAD.format("the" if counts.nunique() > 1 else counts.max())
    if counts.max() > 1 and band:
        handles.append(Patch(color=GREY, alpha=0.3, linewidth=0, label=label))
    elif counts.max() > 1:
        handles.append(Line2D([], [], color=COLOURS[0], label=f"{label} (ticks)"))
    if not table["finished"].all():
        open_mark: Any = {"linestyle": "", "marker": "o", "markerfacecolor": "white"}
        handles.append(Line2D([], [], color=GREY, label=UNFINISHED, **open_mark))
    return handles


def add_legend(
    figure: Figure,
    handles: Sequence[Any],
    where: Literal["outside lower center", "outside upper center"] = "outside lower center",
) -> None:
    """Add a legend in as many columns as fit; the figure grows by its height."""
    if not handles:
        return
    widest = max(len(handle.get_label()) for handle in handles)
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.055 * widest + 0.5))))
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW_INCHES * rows + 0.1)
    figure.legend(handles=handles, loc=where, frameon=False, ncols=columns)


def name_with_seeds(variant: str, table: pd.DataFrame) -> str:
    """The variant, with its number of seeds if this is not the same for all variants."""
    counts = table.groupby("variant")["run"].nunique()
    return f"{variant} (n={counts[variant]})" if counts.nunique() > 1 else variant


def runs_of(table: pd.DataFrame, variant: str) -> list[pd.DataFrame]:
    return [run for _, run in table.loc[table["variant"] == variant].groupby(["study", "run"])]
