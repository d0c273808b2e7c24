"""Class error and cardinality error of the last decoder layer, as DETR's log shows them. They are not trained."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def measures(logits: Tensor, image: Tensor, query: Tensor, label: Tensor, objects: Tensor) -> dict[str, Tensor]:
    """logits [B, Q, C] of the last layer -> two numbers [] by name; nothing is read from the device.

    image, query, label: of its N matched queries, [N] each; objects: the number in each image, [B].

    class_error: the percentage of matched queries whose highest output is not their object's class; 100 without any.
    cardinality_error: the mean over images of |queries whose highest output is not the last one - objects|. With focal
    loss the last output is not "no object" but a class that no object has: nearly every query counts, as in SMCA's log.
    Source: Carion et al., DETR, `loss_labels` and `loss_cardinality`.
    """
    best = logits.argmax(-1)  # [B, Q]
    right = (best[image, query] == label).sum() / max(1, len(label))
    found = (best != logits.shape[-1] - 1).sum(-1)
    return {"class_error": 100 - 100 * right, "cardinality_error": (found - objects).abs().float().mean()}
