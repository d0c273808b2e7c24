"""The losses of matched masks: dice and focal, as published (Carion et al., DETR, 2020, models/segmentation.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torchvision.ops import sigmoid_focal_loss

from fovea_detr.errors import DataError
from fovea_detr.loss.matcher import Match
from fovea_detr.types import Predictions, Target


def mask_losses(
    predictions: Predictions, targets: Sequence[Target], matches: Sequence[Match], num_boxes: Tensor
) -> dict[str, Tensor]:
    """matches: the last layer's, one per image; num_boxes [1] -> "mask" and "dice", [1] each.

    Padding up to the largest mask of the batch counts as background. Raises DataError for targets without masks.
    """
    masks = [target.masks for target in targets if target.masks is not None]
    if len(masks) < len(targets):
        raise DataError("model.masks=true, but the targets have no masks: train on data with masks, or without a head")
    for mask, target in zip(masks, targets, strict=True):
        if len(mask) != len(target):
            raise DataError(f"a target has {len(target)} objects and {len(mask)} masks: it needs one for each")
    size_hw = (max(mask.shape[1] for mask in masks), max(mask.shape[2] for mask in masks))
    logits = predictions.masks_of([queries for queries, _ in matches])
    losses = [
        torch.zeros(2, device=part.device) + 0 * part.sum() for part in logits[:1]
    ]  # its graph, if nothing matches
    for part, mask, (_, objects) in zip(logits, masks, matches, strict=True):
        if len(objects):
            chosen = mask[objects].to(part.device, non_blocking=True)
            # The values of every pixel are computed again in the backward pass, instead of kept for all images.
            again = {"use_reentrant": False, "preserve_rng_state": False}
            losses.append(checkpoint(focal_and_dice, part, chosen, size_hw, **again))  # type: ignore[arg-type]
    focal, dice = (torch.stack(losses).sum(0) / num_boxes).split(1)
    return {"mask": focal, "dice": dice}


def focal_and_dice(logits: Tensor, masks: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """logits [N, rows, columns], masks [N, h, w] bool, which are padded to `size_hw` -> both losses' sums [2]."""
    bottom, right = size_hw[0] - masks.shape[1], size_hw[1] - masks.shape[2]
    t = functional.pad(masks, (0, right, 0, bottom)).flatten(1).to(logits.dtype)
    x = functional.interpolate(logits[:, None], size_hw, mode="bilinear", align_corners=False).flatten(1)
    focal = sigmoid_focal_loss(x, t).mean(1).sum()
    p = x.sigmoid()
    dice = 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
    return torch.stack((focal, dice.sum()))
