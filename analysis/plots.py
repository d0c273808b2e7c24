"""The figures of an ablation, from the tables of `analysis.curves`: learning curves, final AP, losses, categories.

    python analysis/plots.py [STUDY ...] [--runs runs] [--out plots] [--metric AP] [--baseline VARIANT]

Each function takes one of those tables and returns a matplotlib Figure. A variant is one configuration; drawn is the
mean over its seeds, with a band or bar of one sample standard deviation. Runs whose learning rate has not been dropped
yet are marked: they cannot be compared. Never imports torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script has its own folder there, not `analysis`
if find_spec("matplotlib") is None:
    sys.exit("error: figures are drawn with matplotlib: pip install -e '.[notebooks]'")

from analysis.figures.drawing import (
    add_legend,
    draw_dots,
    draw_lines,
    fits_beside,
    name_lines,
    named,
    of_spread,
    of_variants,
    variants_of,
)
from analysis.figures.style import house_style, looks, new_figure, save
from analysis.reading import curves
from fovea_detr.errors import UserError

FORMATS = ("pdf", "svg", "png")
MOST_CATEGORIES, MOST_VARIANTS = 24, 4  # that category_differences shows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The figures of an ablation, from its run folders.")
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="folders of RUNS; all of them if none is named")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of all studies (default: runs)")
    parser.add_argument("--out", type=Path, default=Path("plots"), help="where the figures go (default: plots)")
    parser.add_argument("--metric", default="AP", help="what counts: AP (default), AP50, AP_small, AR_100, ...")
    parser.add_argument("--baseline", help="the variant that categories are compared with, as the figures name it")
    options = parser.parse_args(arguments)
    try:
        tables = curves.read(options.runs, options.studies)
        for name, figure in all_figures(tables, options.metric, options.baseline).items():
            for ending in FORMATS:
                save(figure, options.out / f"{name}.{ending}")
            print(f"{options.out / name}.{{{','.join(FORMATS)}}}")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in tables.problems:
        print(line, file=sys.stderr)
    return 0


def all_figures(tables: curves.Tables, metric: str = "AP", baseline: str | None = None) -> dict[str, Figure]:
    """Every figure that these runs have numbers for, by file name. Raises UserError if there is none."""
    scored = tables.runs.dropna(subset=[metric]) if metric in tables.runs else tables.runs.iloc[:0]
    if scored.empty:
        raise UserError(f"no run has been evaluated yet: there is no {metric} among {len(tables.runs)} runs")
    figures = {"final": final_scores(scored, metric)}
    if "loss" in tables.epochs:
        figures |= {"by_epoch": learning_curves(tables.epochs, "epoch", metric), "losses": losses(tables.epochs)}
        figures["by_time"] = learning_curves(tables.epochs, time_column(tables.epochs), metric)
    if tables.categories["variant"].nunique() > 1:
        figures["categories"] = category_differences(tables.categories, baseline)
    return figures


def time_column(epochs: pd.DataFrame) -> str:
    """GPU-hours if every run had a GPU, else minutes."""
    return "gpu_hours" if epochs["gpu_hours"].notna().all() else "minutes"


def learning_curves(epochs: pd.DataFrame, x: str = "epoch", metric: str = "AP") -> Figure:
    """A metric by x = epoch, gpu_hours or minutes: a line a variant, a band of ± 1 standard deviation over seeds."""
    epochs = epochs.dropna(subset=[metric])
    with house_style():
        figure = new_figure(height=2.2)
        axes = figure.subplots()
        draw_lines(axes, epochs, x, metric)
        axes.set_xlabel({"gpu_hours": "GPU-hours", "minutes": "minutes"}.get(x, x))
        axes.set_ylabel(metric)
        axes.set_ylim(bottom=0)
        beside = fits_beside(epochs)
        add_legend(figure, of_spread(epochs, band=True), "outside upper center")
        add_legend(figure, [] if beside else of_variants(epochs))
        if beside:
            name_lines(axes, epochs, x, metric)
    return figure


def losses(epochs: pd.DataFrame) -> Figure:
    """The loss and each of its parts by epoch, a panel each."""
    names = [name for name in map(str, epochs) if name == "loss" or name.startswith("loss_")]
    rows = -(-len(names) // 2)
    with house_style():
        figure = new_figure(height=0.4 + 1.25 * rows)
        panels = list(figure.subplots(rows, 2, sharex=True, squeeze=False).flat)
        for axes, name in zip(panels, names, strict=False):
            draw_lines(axes, epochs, "epoch", name)
            axes.set_xlabel("epoch" if name in names[-2:] else "")
            axes.set_title(name.removeprefix("loss_") if name != "loss" else "total (weighted, all layers)")
        for axes in panels[len(names) :]:
            axes.remove()
        add_legend(figure, of_spread(epochs, band=True), "outside upper center")
        add_legend(figure, of_variants(epochs))
    return figure


def final_scores(runs: pd.DataFrame, metric: str = "AP") -> Figure:
    """A dot a variant, the mean of its runs' last evaluations, with ± 1 standard deviation and every seed's tick."""
    runs = runs.dropna(subset=[metric])
    order = variants_of(runs)
    with house_style():
        figure = new_figure(height=0.5 + 0.26 * len(order))
        axes = figure.subplots()
        draw_dots(axes, runs, metric)
        axes.set_yticks(range(len(order)), [named(variant, runs) for variant in order])
        axes.set_ylim(len(order) - 0.5, -0.8)
        axes.set_xlabel(metric)
        axes.margins(x=0.14)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        add_legend(figure, of_spread(runs, band=False), "outside upper center")
    return figure


def category_differences(categories: pd.DataFrame, baseline: str | None = None, most: int = MOST_CATEGORIES) -> Figure:
    """Each category's AP less the baseline's (by default the first variant), means over seeds.

    Of many categories the `most` different; of many variants the MOST_VARIANTS of the highest AP.
    """
    order = variants_of(categories)
    baseline = order[0] if baseline is None else baseline
    if baseline not in order:
        raise UserError(f"there is no variant {baseline}; there is {'; '.join(order)}")
    means = categories.pivot_table("AP", "category", "variant", "mean")
    best = means.drop(columns=baseline).mean().nlargest(MOST_VARIANTS).index
    differences = means[best].sub(means[baseline], axis=0).dropna(how="all")
    shown = differences.abs().max(axis=1).nlargest(most).index
    rows = differences.loc[differences.loc[shown].mean(axis=1).sort_values().index]
    cut = [f"{len(rows)} most different of {len(differences)} categories"] if len(rows) < len(differences) else []
    cut += [f"{len(best)} best of {len(order) - 1} variants"] if len(best) < len(order) - 1 else []
    return _draw_differences(rows, categories.loc[categories["variant"].isin(best)], order, baseline, "; ".join(cut))


def _draw_differences(
    rows: pd.DataFrame, categories: pd.DataFrame, order: list[str], baseline: str, title: str
) -> Figure:
    early = set(categories.loc[categories["is_early"]]["variant"])
    with house_style():
        figure = new_figure(height=0.6 + 0.15 * len(rows))
        axes = figure.subplots()
        axes.axvline(0, color="#444444", linewidth=0.8)
        for variant in rows:
            look: Any = {**looks(order)[str(variant)], "linestyle": "", "markersize": 4}
            axes.plot(rows[variant], range(len(rows)), markerfacecolor="white" if variant in early else None, **look)
        axes.set_yticks(range(len(rows)), list(map(str, rows.index)))
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_xlabel(f"AP less that of {baseline}")
        axes.grid(axis="both")
        axes.tick_params(axis="y", length=0)
        axes.set_title(title, fontsize=7)
        add_legend(figure, of_spread(categories, band=True)[-1:] if early else [], "outside upper center")
        add_legend(figure, of_variants(categories, order, marks=True))
    return figure


if __name__ == "__main__":
    sys.exit(main())
