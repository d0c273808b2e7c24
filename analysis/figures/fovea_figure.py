"""Maps over an image: the heads' priors as outlines or shades, attention as a shade, the detected box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from analysis.figures.style import COLOURS, COLUMN_INCHES, house_style, new_figure
from fovea_detr.predict.capture import Capture, LayerMaps
from fovea_detr.predict.cells import attention_at_pixels, prior_at_pixels

SHADE = np.array([213, 94, 0]) / 255  # vermilion of Okabe and Ito
BOX = "#F0E442"
OUTLINE = np.exp(-0.5)  # at one standard deviation if the prior is a Gaussian
PAGE_INCHES = 7.0  # both columns
Heads = Sequence[int]
Draw = Callable[..., None]


class Marked(NamedTuple):
    """A query to draw, its caption, and its box: left, top, right, bottom in pixels of the image."""

    query: int
    title: str
    box_xyxy: np.ndarray


def heads_together(capture: Capture, image: np.ndarray, marked: Sequence[Marked], layers: Sequence[int]) -> Figure:
    """One text column wide: one query per column; per layer a row of prior outlines and a row of mean attention.

    image: [h, w, 3] uint8, as stored. Plain DETR: attention only.
    """
    rows = [(layer, draw) for layer in layers for draw in _panels(capture)]
    inches = max(COLUMN_INCHES, 1.1 * len(marked))
    panel = (inches - 0.4) / max(2, len(marked)) * image.shape[0] / image.shape[1]
    with house_style():
        figure = new_figure(inches, panel * len(rows) + 0.3, padding=0.02)
        grid = figure.subplots(len(rows), len(marked), squeeze=False)
        for row, (layer, draw) in enumerate(rows):
            for column, one in enumerate(marked):
                draw(grid[row, column], capture, capture.layers[layer], one, image)
            grid[row, 0].set_ylabel(f"layer {layer}\n{_name(draw, capture)}", fontsize=7)
        for column, one in enumerate(marked):
            grid[0, column].set_title(one.title.replace(": ", "\n"), fontsize=7)
    return figure


def heads_apart(capture: Capture, image: np.ndarray, marked: Sequence[Marked], layers: Sequence[int]) -> Figure:
    """Two text columns wide: per query and layer a row of the heads' priors above a row of their attention."""
    heads = capture.layers[0].attention.shape[0]
    height, width = image.shape[:2]
    blocks = [(one, layer) for one in marked for layer in layers]
    panel, draws = (PAGE_INCHES - 0.2) / heads * height / width, _panels(capture, apart=True)
    with house_style():
        figure = new_figure(PAGE_INCHES, ((panel + 0.04) * len(draws) + 0.38) * len(blocks))
        for part, (one, layer) in zip(figure.subfigures(len(blocks), 1, squeeze=False).flat, blocks, strict=True):
            part.suptitle(f"{one.title}, layer {layer}", fontsize=7)
            grid = part.subplots(len(draws), heads, squeeze=False)
            for row, draw in enumerate(draws):
                for head in range(heads):
                    draw(grid[row, head], capture, capture.layers[layer], one, image, [head])
                    grid[-1, head].set_xlabel(f"head {head}", fontsize=6.5)
                grid[row, 0].set_ylabel(_name(draw, capture), fontsize=7)
    return figure


def _panels(capture: Capture, *, apart: bool = False) -> list[Draw]:
    """The panels of a layer: prior and attention; plain DETR has only attention."""
    return [shades if apart else outlines, attention] if capture.layers[0].log_prior is not None else [attention]


def _name(draw: Draw, capture: Capture) -> str:
    title = "attention" if capture.layers[0].log_prior is not None else "attention,\nno prior"
    return title if draw is attention else "prior"


def outlines(axes: Axes, capture: Capture, maps: LayerMaps, one: Marked, image: np.ndarray) -> None:
    """The contour at which each head's prior is exp(-1/2), one colour per head."""
    _draw_image(axes, image, one)
    heads = [head for head in range(len(maps.has_prior)) if maps.has_prior[head, one.query]]
    for head in heads:
        prior = _prior(capture, maps, one.query, head, image)
        if prior.min() < OUTLINE < prior.max():
            lines = axes.contour(prior, [OUTLINE], colors=[COLOURS[head % len(COLOURS)]], linewidths=1.1)
            lines.set_path_effects([withStroke(linewidth=2, foreground="white", alpha=0.8)])
    if not heads:
        _write(axes, "no prior")


def shades(axes: Axes, capture: Capture, maps: LayerMaps, one: Marked, image: np.ndarray, heads: Heads) -> None:
    """The prior of one head as a shade."""
    (head,) = heads
    if maps.has_prior[head, one.query]:
        _draw_image(axes, _shaded(image, _prior(capture, maps, one.query, head, image)), one)
    else:
        _draw_image(axes, image, one)
        _write(axes, "no prior")


def attention(
    axes: Axes, capture: Capture, maps: LayerMaps, one: Marked, image: np.ndarray, heads: Heads | None = None
) -> None:
    """The mean attention of these heads (default: all) as a shade, darkest at its maximum."""
    cells = (maps.attention if heads is None else maps.attention[list(heads)])[:, one.query].mean(0)
    sizes = _size_hw(image), capture.size_hw
    values = attention_at_pixels(cells.double().numpy(), *sizes, capture.stride, capture.first_cell)
    _draw_image(axes, _shaded(image, values / values.max()), one)


def _prior(capture: Capture, maps: LayerMaps, query: int, head: int, image: np.ndarray) -> np.ndarray:
    assert maps.log_prior_at is not None
    return prior_at_pixels(partial(maps.log_prior_at, head, query), _size_hw(image), capture.size_hw, capture.stride)


def _size_hw(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _shaded(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The image in pale grey, shaded by values [h, w] in 0..1 -> [h, w, 3]."""
    grey = 0.5 + 0.5 * image.mean(axis=2, keepdims=True) / 255
    weight = 0.9 * values[..., None].clip(0, 1)
    return grey * (1 - weight) + SHADE * weight


def _draw_image(axes: Axes, image: np.ndarray, one: Marked) -> None:
    axes.imshow(image, interpolation="antialiased")
    axes.set_autoscale_on(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    left, top, right, bottom = (one.box_xyxy - 0.5).tolist()  # imshow places the first pixel's centre at 0
    style: Any = {"fill": False, "linewidth": 0.9, "edgecolor": BOX}
    box = Rectangle((left, top), right - left, bottom - top, **style)
    box.set_path_effects([withStroke(linewidth=2, foreground="black")])
    axes.add_patch(box)


def _write(axes: Axes, text: str) -> None:
    halo = [withStroke(linewidth=2, foreground="white")]
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=7, path_effects=halo)
