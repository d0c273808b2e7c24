"""Feature cells -> pixels of the original image.

Cell i is at pixel i x stride of the resized image: the prior measures distances from there, and a ResNet cell's
receptive field is centred there, because its strided convolutions start at pixel 0.
"""

from __future__ import annotations

import numpy as np
from scipy.interpolate import make_interp_spline


def cell_coordinates(pixels: int, resized: int, stride: int) -> np.ndarray:
    """One side: `pixels` long in the file, `resized` for the model -> each pixel's coordinate in cells [pixels]."""
    return (np.arange(pixels) + 0.5) * (resized / pixels) / stride


def attention_at_pixels(
    cells: np.ndarray, size_hw: tuple[int, int], resized_hw: tuple[int, int], stride: int
) -> np.ndarray:
    """[rows, columns] -> [height, width], linear between cells and constant outside them."""
    for axis, (pixels, resized) in enumerate(zip(size_hw, resized_hw, strict=True)):
        where = cell_coordinates(pixels, resized, stride).clip(0, cells.shape[axis] - 1)
        cells = _along(cells, axis, where, degree=1)
    return cells


def prior_at_pixels(
    log_prior: np.ndarray, size_hw: tuple[int, int], resized_hw: tuple[int, int], stride: int
) -> np.ndarray:
    """Log-prior [rows, columns] -> prior at every pixel [height, width].

    Interpolates the log-prior with a cubic spline. This is exact between and outside the cells, because the log-prior
    of every dynamic scale is at most quadratic in x and in y.
    """
    for axis, (pixels, resized) in enumerate(zip(size_hw, resized_hw, strict=True)):
        log_prior = _along(log_prior, axis, cell_coordinates(pixels, resized, stride), degree=3)
    return np.exp(np.minimum(log_prior, 0.0))


def _along(values: np.ndarray, axis: int, where: np.ndarray, degree: int) -> np.ndarray:
    count = values.shape[axis]
    if count == 1:
        return np.repeat(values, len(where), axis)
    return make_interp_spline(np.arange(count), values, k=min(degree, count - 1), axis=axis)(where)
