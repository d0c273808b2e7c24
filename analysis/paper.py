"""Figure 1 of a paper: AP by epoch with published lines, what the errors cost, one query's heads, plain and fovea.

A part for which the study has no numbers is left out, and the reason is told. Imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from analysis.figures import drawing
from analysis.figures.fovea_figure import ATTENTION, head_rows, row_inches
from analysis.figures.head_maps import Marked, View, attention_norm
from analysis.fovea_maps import open_view
from analysis.study import Study
from analysis.tables.cells import Value, mean_of
from analysis.tables.frames import counted, in_percent
from analysis.tables.rows import Row, ranked
from analysis.tables.verdicts import errors_of
from fovea_detr.runs.folder import RunFolder

MOST_ROWS = 8
Shown = tuple[str, View, Marked]  # the row's label, what its run computed, and the query


def paper(study: Study, metric: str = "AP", image: str | None = None) -> tuple[Figure, list[str]]:
    """Two text columns wide -> the figure, and what it leaves out. image: an id or a file; None: the first of the data.

    Raises UserError for an unknown image.
    """
    every = ranked(study.rows, metric)
    rows = every[:MOST_ROWS]
    epochs = in_percent(counted(study.epochs), metric)
    epochs = epochs.loc[epochs["variant"].isin([row.label for row in rows])]
    shown, left_out = heads_of(every, image)
    inches = sum(row_inches(view) + 0.4 for _, view, _ in shown)
    with drawing.house_style():
        figure = drawing.new_figure(drawing.PAGE_INCHES, 2.9 + inches)
        parts: Any = figure.subfigures(
            2 if shown else 1, 1, squeeze=False, height_ratios=(2.9, inches)[: 1 + bool(shown)]
        )
        above = parts[0, 0]
        curves, errors = above.subplots(1, 2)
        drawing.draw_lines(curves, epochs, "epoch", metric)
        curves.set(ylabel=metric, ylim=(0, None))
        curves.set_title("(a)", loc="left")
        draw_published(curves, rows, metric)
        left_out += draw_errors(errors, rows, drawing.variants_of(epochs))
        handles = [*drawing.variant_handles(epochs), *drawing.spread_handles(epochs, bars=False)]
        above.legend(handles=handles, loc="outside lower center", frameon=False, ncols=min(4, len(handles)))
        if shown:
            draw_heads(parts[1, 0], shown)
    return figure, left_out + [f"drawn: the best {MOST_ROWS} of {len(every)} rows"] * (len(every) > MOST_ROWS)


def draw_published(axes: Axes, rows: Sequence[Row], metric: str) -> None:
    cells = [row.cells.get(f"{metric}_published") for row in rows]
    for value in sorted({100 * cell.mean for cell in cells if isinstance(cell, Value)}):
        axes.axhline(value, color="#444444", linewidth=0.8, linestyle="dashed")
        axes.annotate(f"published {value:.1f}", (0.01, value), (0, 2), axes.get_yaxis_transform(), "offset points")


def draw_errors(axes: Axes, rows: Sequence[Row], order: Sequence[str]) -> list[str]:
    """The AP50 that each of TIDE's types of error costs, mean ± 1 standard deviation -> why it is left out."""
    found = {row.label: errors for row in rows if (errors := errors_of(row))}
    if not found:
        axes.remove()
        return ["(b) left out: no finished run has matches: python -m fovea_detr.evaluation matches RUN"]
    types, width = list(next(iter(found.values()))), 0.8 / len(found)
    for i, (label, errors) in enumerate(found.items()):
        cells = [mean_of(errors[name]) or Value(0) for name in types]
        means, stds = ([100 * one for one in own] for own in zip(*((c.mean, c.std) for c in cells), strict=True))
        places = np.arange(len(types)) + (i - (len(found) - 1) / 2) * width
        style: Any = {"color": drawing.line_styles(order)[label]["color"], "error_kw": {"elinewidth": 0.7}}
        axes.bar(places, means, width, yerr=stds, **style)
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
        shown.append((label, view, view.marked([query])[0]))
    return shown[::-1], missing


def draw_heads(part: SubFigure, shown: Sequence[Shown]) -> None:
    """The last layer's attention of each head, a row for each model, on one scale; outlined: the head's prior."""
    norm = attention_norm(view.capture.layers[-1].attention[:, one.query] for _, view, one in shown)
    rows = part.subfigures(len(shown), 1, squeeze=False).flat
    for row, mark, (label, view, one) in zip(rows, ("(c) ", ""), shown, strict=False):
        row.suptitle(f"{mark}{label}: {one.title}", fontsize=7, x=0.01, ha="left")
        head_rows(row, view, len(view.capture.layers) - 1, one, {ATTENTION: norm})
