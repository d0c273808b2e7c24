"""What a figure of heads shows, in pixels of the image: a head's attention, its prior, and the way of its centre."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LogNorm
from torch import Tensor

from fovea_detr.predict.capture import Capture
from fovea_detr.predict.cells import attention_at_pixels, pixels_of, prior_at_pixels

LEAST_RANGE = 10.0  # the colours of attention reach at least so many times even attention


class Marked(NamedTuple):
    """A query to draw, its caption, and its box: left, top, right, bottom in pixels of the image."""

    query: int
    title: str
    box_xyxy: np.ndarray


def attention(capture: Capture, image: np.ndarray, layer: int, query: int, head: int | None = None) -> np.ndarray:
    """A head's attention, or the mean of all, at every pixel [h, w], as a multiple of even attention."""
    maps = capture.layers[layer].attention
    cells = (maps.mean(0) if head is None else maps[head])[query].double().numpy()
    sizes = _size_hw(image), capture.size_hw
    return attention_at_pixels(cells * cells.size, *sizes, capture.stride, capture.first_cell)


def attention_norm(maps: Iterable[Tensor]) -> LogNorm:
    """One scale for maps [..., rows, columns]: from even attention to the most, at least LEAST_RANGE."""
    return LogNorm(
        1, max(LEAST_RANGE, *(float(cells.max()) * cells.shape[-2] * cells.shape[-1] for cells in maps)), clip=True
    )


def prior(capture: Capture, image: np.ndarray, layer: int, one: Marked, head: int) -> np.ndarray | None:
    """exp(log_prior) at every pixel [h, w]; None if this head has no prior for the query."""
    maps = capture.layers[layer]
    if maps.log_prior_at is None or not maps.has_prior[head, one.query]:
        return None
    formula = partial(maps.log_prior_at, head, one.query)
    return prior_at_pixels(formula, _size_hw(image), capture.size_hw, capture.stride)


def centres(capture: Capture, image: np.ndarray, query: int, head: int) -> np.ndarray:
    """The centres of a head's prior by layer, (x, y) in pixels of the image [layers, 2]."""
    cells = np.array(
        [maps.centres_cells[head, query].tolist() for maps in capture.layers if maps.centres_cells is not None]
    )
    sides = zip(cells.T, _size_hw(image)[::-1], capture.size_hw[::-1], strict=True)
    return np.stack([pixels_of(own, pixels, size, capture.stride) for own, pixels, size in sides], axis=1)


def _size_hw(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]
