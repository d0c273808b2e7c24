"""Figure 1 of a paper: AP by epoch with published lines, what the errors cost, one query's heads, plain and fovea.

A part for which the study has no numbers is left out, and the reason is told. Imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from analysis.figures.drawing import draw_lines, spread_handles, variant_handles, variants_of
from analysis.figures.fovea_figure import Marked, add_bar, attention, attention_norm, outline, prior, shade
from analysis.figures.style import PAGE_INCHES, house_style, line_styles, new_figure
from analysis.fovea_maps import View, open_view
from analysis.study import Study
from analysis.tables.cells import Value, mean_of
from analysis.tables.frames import counted, in_percent
from analysis.tables.rows import Row
from analysis.tables.verdicts import errors_of
from fovea_detr.runs.folder import RunFolder

MOST_ROWS = 8
Shown = tuple[str, View, Marked]  # the row's label, what its run computed, and the query


def paper(study: Study, metric: str = "AP", image: str | None = None) -> tuple[Figure, list[str]]:
    """Two text columns wide -> the figure, and what it leaves out. image: an id or a file; None: the first of the data.

    Raises UserError for an unknown image.
    """
    ranked = sorted(study.rows, key=lambda row: (not row.is_finished, -(row.mean(metric) or Value(0)).mean))
    rows = ranked[:MOST_ROWS]
    epochs = in_percent(counted(study.epochs), metric)
    epochs = epochs.loc[epochs["variant"].isin([row.label for row in rows])]
    shown, left_out = heads_of(ranked, image)
    heads = max((len(view.capture.layers[-1].attention) for _, view, _ in shown), default=1)
    inches = sum((PAGE_INCHES - 1) / heads * view.image.shape[0] / view.image.shape[1] + 0.15 for _, view, _ in shown)
    with house_style():
        figure = new_figure(PAGE_INCHES, 2.9 + inches)
        above, below = figure.subfigures(2, 1, height_ratios=(2.9, inches)) if shown else (figure, None)
        curves, errors = above.subplots(1, 2)
        draw_lines(curves, epochs, "epoch", metric)
        curves.set(ylabel=metric, ylim=(0, None))
        curves.set_title("(a)", loc="left")
        draw_published(curves, rows, metric)
        left_out += draw_errors(errors, rows, variants_of(epochs))
        handles = [*variant_handles(epochs), *spread_handles(epochs, bars=False)]
        above.legend(handles=handles, loc="outside lower center", frameon=False, ncols=min(4, len(handles)))
        if below is not None:
            draw_heads(below, shown, heads)
    return figure, left_out + [f"drawn: the best {MOST_ROWS} of {len(ranked)} rows"] * (len(ranked) > MOST_ROWS)


def draw_published(axes: Axes, rows: Sequence[Row], metric: str) -> None:
    cells = [row.cells.get(f"{metric}_published") for row in rows]
    for value in sorted({100 * cell.mean for cell in cells if isinstance(cell, Value)}):
        axes.axhline(value, color="#444444", linewidth=0.8, linestyle="dashed")
        axes.annotate(f"published {value:.1f}", (0.01, value), (0, 2), axes.get_yaxis_transform(), "offset points")


def draw_errors(axes: Axes, rows: Sequence[Row], order: Sequence[str]) -> list[str]:
    """The AP50 that each of TIDE's types of error costs, mean ± 1 standard deviation -> why it is left out."""
    found = {row.label: errors for row in rows if row.is_finished and (errors := errors_of(row))}
    if not found:
        axes.remove()
        return ["(b) left out: no finished run has matches: python -m fovea_detr.evaluation matches RUN"]
    types, width = list(next(iter(found.values()))), 0.8 / len(found)
    for i, (label, errors) in enumerate(found.items()):
        cells = [mean_of(errors[name]) or Value(0) for name in types]
        means, stds = ([100 * one for one in own] for own in zip(*((c.mean, c.std) for c in cells), strict=True))
        places = np.arange(len(types)) + (i - (len(found) - 1) / 2) * width
        axes.bar(
            places, means, width, yerr=stds, color=line_styles(order)[label]["color"], error_kw={"elinewidth": 0.7}
        )
    axes.set_xticks(range(len(types)), types)
    axes.set_ylabel("AP50 lost")
    axes.set_title("(b)", loc="left")
    return []


def heads_of(rows: Sequence[Row], image: str | None) -> tuple[list[Shown], list[str]]:
    """The first finished plain row and the first with a fovea whose run kept its checkpoint -> both, what is missing.

    The query is the best detection of the fovea; of plain DETR, the query whose box is nearest to it.
    """
    shown: list[Shown] = []
    missing = []
    for kind, fovea in (("fovea", "true"), ("plain", "false")):
        own = [row for row in rows if row.is_finished and row.settings.get("model.fovea") == fovea]
        kept = [
            (row.label, run.path) for row in own for run in row.counted if RunFolder(run.path).checkpoint_path.exists()
        ]
        if not kept:
            missing.append(f"(c) without {kind}: no finished {kind} run has a checkpoint")
            continue
        label, path = kept[0]
        view = open_view(path, image)
        query = view.nearest_query(shown[0][2].box_xyxy) if shown else view.best_queries(1)[0]
        shown.append((label, view, *view.marked([query])))
    return shown[::-1], missing


def draw_heads(part: SubFigure, shown: Sequence[Shown], heads: int) -> None:
    """The last layer's attention of each head, a row for each model, on one scale; outlined: the head's prior."""
    grid = part.subplots(len(shown), heads, squeeze=False)
    own = {
        (i, h): attention(v.capture, v.image, -1, m.query, h)
        for i, (_, v, m) in enumerate(shown)
        for h in range(heads)
        if h < len(v.capture.layers[-1].attention)
    }
    norm = attention_norm(own.values())
    for (i, head), values in own.items():
        label, view, marked = shown[i]
        axes = grid[i, head]
        shade(axes, view.image, marked, values, norm)
        outline(axes, prior(view.capture, view.image, -1, marked, head), "#0072B2")
        axes.set_xlabel(f"head {head}" if i == len(shown) - 1 else "", fontsize=6.5)
        if head == 0:
            axes.set_ylabel(f"{label}\n{marked.title.partition(': ')[2]}", fontsize=6.5)
    for place in set(np.ndindex(grid.shape)) - own.keys():
        grid[place].remove()
    grid[0, 0].set_title("(c)", loc="left")
    add_bar(part, grid.ravel(), norm, "attention, times even")
