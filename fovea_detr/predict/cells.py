"""Pixels of the original image <-> positions in feature cells.

The model measures positions in units of a cell: pixel p of the resized image lies at p / stride. Cell i lies at
`first_cell + i`: at its index as published, where a ResNet cell's receptive field is centred (its strided convolutions
start at pixel 0), or at its centre (fovea.cell_centre=true).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def cell_coordinates(pixels: int, resized: int, stride: int) -> np.ndarray:
    """One side: `pixels` long in the file, `resized` for the model -> each pixel's position in cells [pixels]."""
    return (np.arange(pixels) + 0.5) * (resized / pixels) / stride


def pixels_of(cells: np.ndarray, pixels: int, resized: int, stride: int) -> np.ndarray:
    """The inverse: positions in cells -> in pixels of the file, whose first pixel has its centre at 0."""
    return cells * stride * (pixels / resized) - 0.5


def attention_at_pixels(
    cells: np.ndarray, size_hw: tuple[int, int], resized_hw: tuple[int, int], stride: int, first_cell: float = 0.0
) -> np.ndarray:
    """[rows, columns] -> [height, width], linear between cells and constant outside them."""

    def along(line: np.ndarray, pixels: int, resized: int) -> np.ndarray:
        return np.interp(cell_coordinates(pixels, resized, stride), first_cell + np.arange(len(line)), line)

    for axis, sides in enumerate(zip(size_hw, resized_hw, strict=True)):
        cells = np.apply_along_axis(along, axis, cells, *sides)
    return cells


def prior_at_pixels(
    log_prior_at: Callable[[Tensor, Tensor], Tensor],
    size_hw: tuple[int, int],
    resized_hw: tuple[int, int],
    stride: int,
) -> np.ndarray:
    """The prior at every pixel [height, width], by the model's own formula: log_prior_at(x [n], y [m]) -> [m, n]."""
    y, x = (
        torch.from_numpy(cell_coordinates(pixels, resized, stride)).float()
        for pixels, resized in zip(size_hw, resized_hw, strict=True)
    )
    return log_prior_at(x, y).exp().double().numpy()
