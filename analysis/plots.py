"""Draw the figures of an ablation: learning curves, final AP, losses, AP by category.

    python analysis/plots.py [STUDY ...] [--runs runs] [--out plots] [--metric AP] [--baseline ROW]
    python analysis/plots.py STUDY --figure paper [--image ID]        # figure 1 of a paper: analysis/paper.py

Each function takes a frame of analysis/study.py, in fractions, and returns a Figure, in per cent. A variant is a row of
the table: its mean over the runs that the table averages, with a band or bar of ± one sample standard deviation.
Variants that have not finished are marked as not comparable. Imports no torch, but for the paper.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `python analysis/SCRIPT.py`

from analysis import Study, load, script
from analysis.figures import drawing
from analysis.tables.comparison import find_row
from analysis.tables.frames import counted, in_percent
from analysis.tables.table import LISTED
from fovea_detr.cli import Parser
from fovea_detr.errors import UserError

MOST_CATEGORIES, MOST_VARIANTS = 24, 4  # shown by category_differences


@script.script
def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="folders in RUNS (default: all)")
    script.add_runs(parser)
    parser.add_argument("--out", type=Path, default=Path("plots"), help="output folder (default: plots)")
    parser.add_argument("--metric", default="AP", help=f"one of {LISTED} (default: AP)")
    parser.add_argument("--baseline", metavar="ROW", help="subtract this row in the category figure: KEY=VALUE,...")
    parser.add_argument(
        "--figure", choices=("each", "paper"), default="each", help="each alone, or figure 1 of a paper"
    )
    parser.add_argument(
        "--image", help="of the paper's heads: an id of the validation split (default: its first), a file"
    )
    options = parser.parse_args(arguments)
    study = load(options.runs, options.studies)
    if options.metric not in study.runs or study.runs[options.metric].isna().all():
        raise UserError(f"none of {len(study.runs)} runs has the metric {options.metric} yet")
    notes: list[str] = []
    if options.figure == "paper":
        from analysis.paper import paper  # only here: it loads torch

        whole, notes = paper(study, options.metric, options.image)
        figures = {"paper": whole}
    else:
        figures = all_figures(study, options.metric, options.baseline)
    for name, figure in figures.items():
        for ending in drawing.ENDINGS:
            drawing.save(figure, options.out / f"{name}{ending}")
        print(f"{options.out / name}.{{{','.join(ending[1:] for ending in drawing.ENDINGS)}}}")
    print("".join(f"{line}\n" for line in [*notes, *study.problems]), end="", file=sys.stderr)


def all_figures(study: Study, metric: str = "AP", baseline: str | None = None) -> dict[str, Figure]:
    """Every figure for which these runs have numbers, by file name."""
    variant = find_row(study.rows, baseline).label if baseline else None
    figures = {"final": final_scores(study.runs, metric)}
    if "loss" in study.epochs:
        figures |= {"by_epoch": learning_curves(study.epochs, "epoch", metric), "losses": losses(study.epochs)}
        figures["by_time"] = learning_curves(study.epochs, time_column(study.epochs), metric)
    if counted(study.categories)["variant"].nunique() > 1:
        figures["categories"] = by_category(study.categories, variant)
    return figures


def time_column(epochs: pd.DataFrame) -> str:
    """`gpu_hours` if every run used a GPU, else `minutes`."""
    epochs = counted(epochs)
    return "gpu_hours" if epochs["gpu_hours"].notna().all() else "minutes"


def learning_curves(epochs: pd.DataFrame, x: str = "epoch", metric: str = "AP") -> Figure:
    """A metric over x = epoch, gpu_hours or minutes: per variant a line and a band of ± 1 standard deviation."""
    epochs = in_percent(counted(epochs), metric)
    with drawing.framed(epochs, height=2.2) as figure:
        axes = figure.subplots()
        drawing.draw_lines(axes, epochs, x, metric)
        axes.set_ylabel(metric)
        axes.set_ylim(bottom=0)
    return figure


def losses(epochs: pd.DataFrame) -> Figure:
    """The total loss and each of its parts by epoch, one panel each."""
    epochs = counted(epochs)
    names = [name for name in map(str, epochs) if name == "loss" or name.startswith("loss_")]
    rows = -(-len(names) // 2)
    with drawing.framed(epochs, height=0.4 + 1.25 * rows) as figure:
        panels = list(figure.subplots(rows, 2, sharex=True, squeeze=False).flat)
        for axes, name in zip(panels, names, strict=False):
            drawing.draw_lines(axes, epochs, "epoch", name)
            axes.set_xlabel("epoch" if name in names[-2:] else "")
            axes.set_title(name.removeprefix("loss_") if name != "loss" else "total (weighted, all layers)")
        for axes in panels[len(names) :]:
            axes.remove()
    return figure


def final_scores(runs: pd.DataFrame, metric: str = "AP") -> Figure:
    """Per variant a dot at the mean of the last evaluations, ± 1 standard deviation, and a tick for each seed."""
    runs = in_percent(counted(runs), metric)
    names = drawing.named_with_seeds(runs)
    beside: Any = {"textcoords": "offset points", "ha": "center", "fontsize": 6.5}
    with drawing.framed(runs, height=0.5 + 0.26 * len(names), bars=True) as figure:
        axes = figure.subplots()
        for row, variant in enumerate(names):
            own = runs.loc[runs["variant"] == variant]
            values, mean = own[metric], own[metric].mean()
            if len(values) > 1:
                axes.plot(values, [row] * len(values), "|", color=drawing.GREY, markersize=8, markeredgewidth=0.8)
                axes.errorbar(mean, row, xerr=values.std(), color=drawing.COLOURS[0], elinewidth=1.4)
            face = drawing.COLOURS[0] if own["finished"].all() else "white"
            axes.plot(mean, row, "o", color=drawing.COLOURS[0], markerfacecolor=face, markersize=5)
            spread = f" ± {values.std():.1f}" if len(values) > 1 else ""
            axes.annotate(f"{mean:.1f}{spread}", (mean, row), (0, 5), **beside)
        axes.set_yticks(range(len(names)), list(names.values()))
        axes.set_ylim(len(names) - 0.5, -0.8)
        axes.set_xlabel(metric)
        axes.margins(x=0.14)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
    return figure


def by_category(categories: pd.DataFrame, baseline: str | None = None, most: int = MOST_CATEGORIES) -> Figure:
    """Each category's AP, as means over seeds, minus that of a variant, the baseline, if one is named.

    At most `most` categories, those that differ most, and MOST_VARIANTS variants, those with the highest AP.
    """
    categories = counted(categories)
    order = drawing.variants_of(categories)
    if baseline is not None and baseline not in order:
        raise UserError(f"{baseline} has no AP by category; choose from {'; '.join(order)}")
    means = categories.pivot_table("AP", "category", "variant", "mean")
    others = means if baseline is None else means.drop(columns=baseline)
    best = others.mean().nlargest(MOST_VARIANTS).index
    shown = others[best] if baseline is None else others[best].sub(means[baseline], axis=0)
    shown = shown.dropna(how="all")
    unlike = shown.max(axis=1) - shown.min(axis=1) if baseline is None else shown.abs().max(axis=1)
    kept = unlike.nlargest(most).index
    rows = shown.loc[shown.loc[kept].mean(axis=1).sort_values().index]
    cut = [f"{len(rows)} most different of {len(shown)} categories"] if len(rows) < len(shown) else []
    cut += [f"{len(best)} best of {others.shape[1]} variants"] if len(best) < others.shape[1] else []
    label = "AP" if baseline is None else f"AP minus AP of {baseline}"
    return _draw_categories(100 * rows, categories.loc[categories["variant"].isin(best)], order, label, "; ".join(cut))


def _draw_categories(rows: pd.DataFrame, categories: pd.DataFrame, order: list[str], label: str, title: str) -> Figure:
    early = set(categories.loc[~categories["finished"]]["variant"])
    with drawing.framed(categories, height=0.6 + 0.15 * len(rows), marks=True, order=order) as figure:
        axes = figure.subplots()
        axes.axvline(0, color="#444444", linewidth=0.8)
        for variant in rows:
            style: Any = {**drawing.line_styles(order)[str(variant)], "linestyle": "", "markersize": 4}
            axes.plot(rows[variant], range(len(rows)), markerfacecolor="white" if variant in early else None, **style)
        axes.set_yticks(range(len(rows)), list(map(str, rows.index)))
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_xlabel(label)
        axes.grid(axis="both")
        axes.tick_params(axis="y", length=0)
        axes.set_title(title, fontsize=7)
    return figure


if __name__ == "__main__":
    sys.exit(main())
