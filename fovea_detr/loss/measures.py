"""Class error and cardinality error of the last decoder layer, as DETR's log shows them. They are not trained."""

from __future__ import annotations

import torch
from torch import Tensor

from fovea_detr.loss.matcher import Match
from fovea_detr.types import Predictions, Target


@torch.no_grad()
def measures(predictions: Predictions, targets: list[Target], matches: list[Match]) -> dict[str, Tensor]:
    """matches: (queries, objects) of each image, of the last layer -> two numbers [] by name; nothing is read from the
    device.

    class_error: the percentage of matched queries whose highest output is not their object's class; 100 without any.
    cardinality_error: the mean over images of |queries whose highest output is not the last one - objects|. With focal
    loss the last output is not "no object" but a class that no object has: nearly every query counts, as in SMCA's log.
    Source: Carion et al., DETR, `loss_labels` and `loss_cardinality`.
    """
    logits = predictions.logits[-1]
    best = logits.argmax(-1)  # [B, Q]
    images = torch.arange(len(matches)).repeat_interleave(torch.tensor([len(queries) for queries, _ in matches]))
    labels = torch.cat([target.labels[objects] for target, (_, objects) in zip(targets, matches, strict=True)])
    queries = torch.cat([queries for queries, _ in matches])
    image, query, label = torch.stack((images, queries, labels)).to(best.device, non_blocking=True)
    objects = torch.tensor([len(target) for target in targets]).to(best.device, non_blocking=True)
    right = (best[image, query] == label).sum() / max(1, len(labels))
    found = (best != logits.shape[-1] - 1).sum(-1)
    return {"class_error": 100 - 100 * right, "cardinality_error": (found - objects).abs().float().mean()}
