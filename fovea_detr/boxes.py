"""Boxes: formats and generalised IoU (Rezatofighi et al., 2019), over any leading dimensions."""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """[..., 4] (centre x, centre y, width, height) -> [..., 4] (left, top, right, bottom), in the same unit."""
    centre, size = boxes_cxcywh.split(2, dim=-1)
    half = size / 2
    return _join(centre - half, centre + half)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """[..., 4] (left, top, right, bottom) -> [..., 4] (centre x, centre y, width, height), in the same unit."""
    low, high = boxes_xyxy.split(2, dim=-1)
    return _join((low + high) / 2, high - low)


def generalised_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Boxes broadcastable to [..., 4] each -> their generalised IoU [...], in -1..1."""
    (a_low, a_high), (b_low, b_high) = a_xyxy.split(2, dim=-1), b_xyxy.split(2, dim=-1)
    overlap = _area(a_low.maximum(b_low), a_high.minimum(b_high))
    hull = _area(a_low.minimum(b_low), a_high.maximum(b_high))
    union = _area(a_low, a_high) + _area(b_low, b_high) - overlap
    tiny = 1e-12  # two boxes without area give 0, not 0 / 0
    return overlap / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def _area(low: Tensor, high: Tensor) -> Tensor:
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width * height


def _join(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat((first, second), dim=-1)
