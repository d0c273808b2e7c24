"""The house style of the figures, colour-blind safe and reproducible; lines with their spread over seeds, legends."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

import matplotlib
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.tables.frames import over_seeds
from fovea_detr.config.groups import natural
from fovea_detr.runs.files import write_atomic

# Okabe and Ito, "Color Universal Design" (2008), with grey in place of yellow, which is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
STYLES = cycler(linestyle=DASHES) * cycler(color=COLOURS, marker=MARKERS)  # called, it begins again after the last one
COLUMN_INCHES = 3.4  # one column of a two-column paper
PAGE_INCHES = 7.0  # both columns
PNG_DPI = 220
ENDINGS = (".pdf", ".svg", ".png")
RC: dict[Any, Any] = {
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 8),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 7),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    "axes.linewidth": 0.6,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,  # embed text as text
    "svg.fonttype": "none",
    "svg.hashsalt": "fovea_detr",  # reproducible files
}
GREY = "#777777"
WIDEST_NAME = 40  # characters in a line: a study of one row is named by all that was typed
LEGEND_ROW_INCHES = 0.15
OPEN = {"marker": "o", "markerfacecolor": "white", "linestyle": ""}  # of a variant that has not finished


@contextmanager
def house_style() -> Iterator[None]:
    with matplotlib.rc_context(RC):
        yield


def new_figure(width: float = COLUMN_INCHES, height: float = 2.4, padding: float | None = None) -> Figure:
    """A figure in inches. Made without pyplot: no window, no global state, and notebooks show it once."""
    tight = {"w_pad": padding, "h_pad": padding, "wspace": 0, "hspace": 0, "compress": True}
    engine = ConstrainedLayoutEngine(**({} if padding is None else tight))
    return Figure(figsize=(width, height), layout=engine)


def line_styles(variants: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, dash and marker of each variant; the first 32 combinations are distinct."""
    return dict(zip(variants, STYLES(), strict=False))


def variants_of(table: pd.DataFrame) -> list[str]:
    return sorted(table["variant"].unique(), key=natural)


@contextmanager
def framed(
    table: pd.DataFrame, height: float, *, bars: bool = False, marks: bool = False, order: Sequence[str] = ()
) -> Iterator[Figure]:
    """A figure one text column wide, in the house's style, with the legends of spread and variants of the table.

    bars: the spread is a bar, and the variants are named at an axis. marks: without spread; a variant is a mark in its
    style among `order`.
    """
    with house_style():
        figure = new_figure(height=height)
        yield figure
        add_legend(figure, open_handles(table) if marks else spread_handles(table, bars), "outside upper center")
        add_legend(figure, [] if bars else variant_handles(table, order, marks))


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


def save(figure: Figure, path: Path, dpi: int = PNG_DPI) -> None:
    """Write .pdf, .svg or .png atomically; equal figures give equal files."""
    options: dict[str, Any] = {
        ".pdf": {"metadata": {"CreationDate": None, "ModDate": None}},
        ".svg": {"metadata": {"Date": None}},
    }
    content = io.BytesIO()
    with house_style():
        figure.savefig(content, format=path.suffix[1:], dpi=dpi, **options.get(path.suffix, {}))
    write_atomic(path, lambda file: file.write(content.getvalue()))
