"""Random predictions and targets for the tests of matching, losses and post-processing; the names of COCO's numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from fovea_detr.types import Predictions, Target

ACTIVATIONS = {"focal": "sigmoid", "softmax": "softmax"}
CLASSES = 4  # outputs; the last one is of no class
# Of COCOeval.stats, in its order; a run may compute more metrics than these.
TWELVE = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
TWELVE += ("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large")


def random_boxes(*shape: int, draw: torch.Generator) -> Tensor:
    """-> [*shape, 4] cxcywh fractions, every one of some area."""
    centre = 0.2 + 0.6 * torch.rand(*shape, 2, generator=draw, dtype=torch.float64)
    size = 0.05 + 0.3 * torch.rand(*shape, 2, generator=draw, dtype=torch.float64)
    return torch.cat((centre, size), dim=-1)


def random_predictions(
    layers: int, batch: int, queries: int, *, loss: str = "focal", seed: int = 0, dtype: torch.dtype = torch.float32
) -> Predictions:
    """With logits [L, B, Q, C] and boxes [L, B, Q, 4] that require gradients."""
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(layers, batch, queries, CLASSES, generator=draw, dtype=torch.float64)
    boxes = random_boxes(layers, batch, queries, draw=draw)
    return Predictions(logits.to(dtype).requires_grad_(), boxes.to(dtype).requires_grad_(), ACTIVATIONS[loss])


def random_targets(*counts: int, seed: int = 1) -> list[Target]:
    """An image for each count of objects."""
    draw = torch.Generator().manual_seed(seed)
    return [
        Target(torch.randint(CLASSES - 1, (count,), generator=draw), random_boxes(count, draw=draw).float())
        for count in counts
    ]
