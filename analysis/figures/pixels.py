"""From feature cells to the pixels of the image as it is on disk.

The model puts cell i at pixel i x stride of the resized image: there its prior measures distances from, and there the
receptive field of a ResNet's cell is centred (its strided convolutions begin at pixel 0). Maps are drawn accordingly.
"""

from __future__ import annotations

import numpy as np
from scipy.interpolate import make_interp_spline


def cell_coordinates(pixels: int, resized: int, stride: int) -> np.ndarray:
    """One side of the image, `pixels` long on disk and `resized` for the model -> each pixel's place in cells."""
    return (np.arange(pixels) + 0.5) * (resized / pixels) / stride


def attention_at_pixels(
    cells: np.ndarray, size_hw: tuple[int, int], resized_hw: tuple[int, int], stride: int
) -> np.ndarray:
    """[rows, columns] -> [height, width], linear between cells, and constant beyond the outermost ones."""
    for axis, (pixels, resized) in enumerate(zip(size_hw, resized_hw, strict=True)):
        where = cell_coordinates(pixels, resized, stride).clip(0, cells.shape[axis] - 1)
        cells = _along(cells, axis, where, degree=1)
    return cells


def prior_at_pixels(
    log_prior: np.ndarray, size_hw: tuple[int, int], resized_hw: tuple[int, int], stride: int
) -> np.ndarray:
    """[rows, columns] -> exp of it at every pixel [height, width].

    A cubic spline goes through the log-prior's cells: of every dynamic scale it is at most quadratic in x and in y, so
    this is the prior itself between and beyond the cells, not an approximation.
    """
    for axis, (pixels, resized) in enumerate(zip(size_hw, resized_hw, strict=True)):
        log_prior = _along(log_prior, axis, cell_coordinates(pixels, resized, stride), degree=3)
    return np.exp(np.minimum(log_prior, 0.0))


def _along(values: np.ndarray, axis: int, where: np.ndarray, degree: int) -> np.ndarray:
    count = values.shape[axis]
    if count == 1:
        return np.repeat(values, len(where), axis)
    return make_interp_spline(np.arange(count), values, k=min(degree, count - 1), axis=axis)(where)
