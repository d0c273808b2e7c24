"""Where a query looks: the last layer's fovea as a heat map over the picture."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from fovea_detr.predict.capture import Capture
from fovea_detr.predict.cells import prior_at_pixels

HEAT = (255.0, 220.0, 0.0)  # RGB
OPACITY = 0.75


def fovea_heat(captured: Capture, query: int, size_hw: tuple[int, int]) -> np.ndarray | None:
    """[h, w] in 0..1: exp(log_prior) of a query at every pixel, the mean of the heads that have a prior; None if none.

    It is the prior's own formula at every pixel, not an interpolation between cells.
    """
    layer = captured.layers[-1]
    heads = layer.has_prior[:, query].nonzero().flatten().tolist()
    if layer.log_prior_at is None or not heads:
        return None
    at = (partial(layer.log_prior_at, head, query) for head in heads)
    return np.mean([prior_at_pixels(one, size_hw, captured.size_hw, captured.stride) for one in at], axis=0)


def overlay(pixels: Tensor, heat: np.ndarray) -> Tensor:
    """[3, h, w] uint8 below a heat map [h, w] in 0..1 -> [3, h, w] uint8."""
    weight = OPACITY * torch.from_numpy(heat).float()
    mixed = pixels * (1 - weight) + torch.tensor(HEAT)[:, None, None] * weight
    return mixed.round().to(torch.uint8)
