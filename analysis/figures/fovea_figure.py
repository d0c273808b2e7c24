"""Maps over an image: the heads' priors as outlines or shades, attention as a shade, the detected box.

Attention is shown as a multiple of even attention, on one logarithmic scale for the whole figure: where a head attends
evenly it is 1, and the image stays pale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import AbstractPathEffect, withStroke

from analysis.figures.drawing import COLUMN_INCHES, PAGE_INCHES, add_legend, house_style, line_styles, new_figure
from analysis.figures.head_maps import Marked, View, attention_norm

SHADES = LinearSegmentedColormap.from_list("shades", [(0.84, 0.37, 0.0, alpha) for alpha in (0.0, 0.95)])
BOX = "#F0E442"
OUTLINE = np.exp(-0.5)  # at one standard deviation if the prior is a Gaussian
ATTENTION, PRIOR = "attention, times even", "prior"
HALO: list[AbstractPathEffect] = [withStroke(linewidth=2, foreground="white", alpha=0.8)]


def heads_together(view: View, marked: Sequence[Marked], layers: Sequence[int]) -> Figure:
    """One text column wide: one query per column; per layer a row of prior outlines and a row of mean attention.

    Plain DETR: attention only.
    """
    kinds = [PRIOR, ATTENTION] if view.has_prior else [ATTENTION]
    rows = [(layer, kind) for layer in layers for kind in kinds]
    maps = [view.capture.layers[layer].attention.mean(0) for layer in layers]
    norm = attention_norm(own[one.query] for own in maps for one in marked)
    inches = max(COLUMN_INCHES, 1.1 * len(marked))
    panel = (inches - 0.7) / max(2, len(marked)) * view.size_hw[0] / view.size_hw[1]
    with house_style():
        figure = new_figure(inches, panel * len(rows) + 0.3, padding=0.02)
        grid = figure.subplots(len(rows), len(marked), squeeze=False)
        for panels, (layer, kind) in zip(grid, rows, strict=True):
            for axes, one in zip(panels, marked, strict=True):
                if kind == PRIOR:
                    outlines(axes, view, layer, one)
                else:
                    shade(axes, view, one, view.attention(layer, one.query), norm)
            panels[0].set_ylabel(f"layer {layer}\n{_name(kind, view)}", fontsize=7)
        for axes, one in zip(grid[0], marked, strict=True):
            axes.set_title(one.title.replace(": ", "\n"), fontsize=7)
        add_bar(figure, grid.ravel(), norm, ATTENTION)
        add_legend(figure, head_handles(view) if PRIOR in kinds else [])
    return figure


def heads_apart(view: View, marked: Sequence[Marked], layers: Sequence[int]) -> Figure:
    """Two text columns wide: per query and layer a row of the heads' priors above a row of their attention."""
    blocks = [(one, layer) for one in marked for layer in layers]
    norm = attention_norm(view.capture.layers[layer].attention[:, one.query] for one, layer in blocks)
    norms = {ATTENTION: norm} if not view.has_prior else {PRIOR: Normalize(0, 1), ATTENTION: norm}
    with house_style():
        figure = new_figure(PAGE_INCHES, (row_inches(view) * len(norms) + 0.38) * len(blocks))
        for part, (one, layer) in zip(figure.subfigures(len(blocks), 1, squeeze=False).flat, blocks, strict=True):
            part.suptitle(f"{one.title}, layer {layer}", fontsize=7)
            head_rows(part, view, layer, one, norms)
    return figure


def row_inches(view: View) -> float:
    """The height of a row of all heads, two text columns wide."""
    return (PAGE_INCHES - 0.8) / len(view.heads) * view.size_hw[0] / view.size_hw[1] + 0.04


def head_rows(part: SubFigure, view: View, layer: int, one: Marked, norms: Mapping[str, Normalize]) -> None:
    """A panel for each head: a row of priors, a row of attention, those of `norms`; alone, with the prior outlined."""
    grid = part.subplots(len(norms), len(view.heads), squeeze=False)
    for (kind, norm), panels in zip(norms.items(), grid, strict=True):
        for head, axes in zip(view.heads, panels, strict=True):
            own = view.prior(layer, one.query, head)
            shade(axes, view, one, own if kind == PRIOR else view.attention(layer, one.query, head), norm)
            outline(axes, own if len(norms) == 1 else None, "#0072B2")
            grid[-1, head].set_xlabel(f"head {head}", fontsize=6.5)
        panels[0].set_ylabel(_name(kind, view), fontsize=7)
        add_bar(part, panels, norm, "" if kind == PRIOR else "times even")


def _name(kind: str, view: View) -> str:
    name = kind.partition(",")[0]
    return name if view.has_prior else f"{name},\nno prior"


def outlines(axes: Axes, view: View, layer: int, one: Marked) -> None:
    """The contour at which each head's prior is exp(-1/2), and the way of its centre from layer 0 to a dot here."""
    _draw_image(axes, view.image, one)
    priors = {head: values for head in view.heads if (values := view.prior(layer, one.query, head)) is not None}
    styles = head_styles(view)
    for head, values in priors.items():
        outline(axes, values, styles[head]["color"], styles[head]["linestyle"])
        x, y = view.centres(one.query, head)[: layer + 1].T
        axes.plot(x, y, color=styles[head]["color"], linewidth=0.7, path_effects=HALO)
        dot: Any = {"color": styles[head]["color"], "markersize": 2.5, "markeredgecolor": "white"}
        axes.plot(x[-1:], y[-1:], "o", markeredgewidth=0.4, **dot)
    if not priors:
        _write(axes, "no prior")


def outline(axes: Axes, values: np.ndarray | None, color: str, linestyle: Any = "solid") -> None:
    """The contour of a prior [h, w] at exp(-1/2), if there is one."""
    if values is not None and values.min() < OUTLINE < values.max():
        lines = axes.contour(values, [OUTLINE], colors=[color], linestyles=[linestyle], linewidths=1.1)
        lines.set_path_effects(HALO)


def shade(axes: Axes, view: View, one: Marked, values: np.ndarray | None, norm: Normalize) -> None:
    """Values [h, w] as a shade over the image in pale grey; None: the head has no prior."""
    grey = 0.5 + 0.5 * view.image.mean(axis=2, keepdims=True).repeat(3, axis=2) / 255
    _draw_image(axes, view.image if values is None else grey, one)
    if values is None:
        _write(axes, "no prior")
    else:
        axes.imshow(values, cmap=SHADES, norm=norm, interpolation="antialiased")


def head_styles(view: View) -> dict[int, dict[str, Any]]:
    return dict(zip(view.heads, line_styles(list(map(str, view.heads))).values(), strict=True))


def head_handles(view: View) -> list[Line2D]:
    styles: Any = {head: style | {"marker": ""} for head, style in head_styles(view).items()}
    return [Line2D([], [], label=f"head {head}", **style) for head, style in styles.items()]


def add_bar(figure: Figure | SubFigure, panels: Iterable[Axes], norm: Normalize, label: str) -> None:
    """The colours of these panels, to their right."""
    beside = list(panels)
    rows = {spec.rowspan.start for panel in beside if (spec := panel.get_subplotspec())}
    bar = figure.colorbar(ScalarMappable(norm, SHADES), ax=beside, pad=0.02, aspect=10 * len(rows), fraction=0.05)
    marks = [0, 1] if norm.vmin == 0 else [m for m in (1, 3, 10, 30, 100, 300, 1000) if m <= (norm.vmax or 1)]
    bar.set_ticks(marks, labels=list(map(str, marks)))
    bar.minorticks_off()
    bar.set_label(label, fontsize=6.5)
    bar.ax.tick_params(labelsize=6)


def _draw_image(axes: Axes, image: np.ndarray, one: Marked) -> None:
    axes.imshow(image, interpolation="antialiased")
    axes.set_autoscale_on(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    left, top, right, bottom = (one.box_xyxy - 0.5).tolist()  # imshow places the first pixel's centre at 0
    style: Any = {"fill": False, "linewidth": 0.9, "edgecolor": BOX, "zorder": 3}
    box = Rectangle((left, top), right - left, bottom - top, **style)
    box.set_path_effects([withStroke(linewidth=2, foreground="black")])
    axes.add_patch(box)


def _write(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=7, path_effects=HALO)
