"""The data types shared by all modules, and the legend of shape letters used in every docstring.

    L decoder layers     B images in a batch     Q queries     K feature cells (rows x columns, row-major)
    H heads              D model width           C class outputs (number of classes + 1)     T targets of one image

Sizes and boxes carry their format in the name: `sizes_hw` is (height, width) in pixels, `size_wh` is (width, height),
`boxes_cxcywh` is (centre x, centre y, width, height) as fractions of the image's own unpadded size, `boxes_xyxy` is
(left, top, right, bottom) in pixels. `is_padding` is True where a pixel or a cell belongs to no image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class Batch:
    """Images of one step, padded at the bottom and the right to a common size.

    images: [B, 3, h, w], zeros in the padding: uint8 as loaded, which the model normalises on its own device, or
        float32, already normalised with ImageNet's mean and deviation.
    sizes_hw: [B, 2] int64, each image's own size inside `images`, in pixels.
    original_sizes_hw: [B, 2] int64, its size on disk, in pixels (detections are scaled to it).
    image_ids: the data set's ids, one per image; empty for images without a data set.
    """

    images: Tensor
    sizes_hw: Tensor
    original_sizes_hw: Tensor
    image_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            sizes_hw=self.sizes_hw.to(device, non_blocking=True),
        )


@dataclass
class Target:
    """The objects of one image. labels: [T] int64 category ids. boxes_cxcywh: [T, 4] float32, fractions of it."""

    labels: Tensor
    boxes_cxcywh: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]


def as_target(target: Target | Mapping[str, Tensor]) -> Target:
    """A Target, or DETR's dict with `labels` [T] and `boxes` [T, 4] (cxcywh fractions) -> Target."""
    return target if isinstance(target, Target) else Target(target["labels"], target["boxes"])


@dataclass
class Predictions:
    """The model's output of every decoder layer; the last layer's is the result.

    logits: [L, B, Q, C] before sigmoid or softmax.
    boxes_cxcywh: [L, B, Q, 4] in 0..1, fractions of each image's own unpadded size.
    activation: from logits to scores, "sigmoid" (focal loss) or "softmax" (the last class is "no object").
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    activation: str = "sigmoid"


@dataclass
class Detections:
    """The detections of one image, best first. scores: [N]. labels: [N] outputs. boxes_xyxy: [N, 4] pixels.

    queries: [N] int64, the query of each.
    """

    scores: Tensor
    labels: Tensor
    boxes_xyxy: Tensor
    queries: Tensor
