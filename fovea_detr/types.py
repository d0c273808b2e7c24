"""The data types shared by all modules, and the legend of shape letters used in every docstring.

    L decoder layers     B images in a batch     Q queries     K feature cells (rows x columns, row-major)
    H heads              D model width           C class outputs (number of classes + 1)     T targets of one image

Sizes and boxes carry their format in the name: `sizes_hw` is (height, width) in pixels, `size_wh` is (width, height),
`boxes_cxcywh` is (centre x, centre y, width, height) as fractions of the image's own unpadded size, `boxes_xyxy` is
(left, top, right, bottom) in pixels. `is_padding` is True where a pixel or a cell belongs to no image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fovea_detr.errors import UserError


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
    """The objects of one image. labels: [T] int64 category ids. boxes_cxcywh: [T, 4] float32, fractions of it.

    masks: [T, h, w] bool at the image's own size in the batch, in pixels; None: the data carry no masks.
    """

    labels: Tensor
    boxes_cxcywh: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]


def as_target(target: Target | Mapping[str, Tensor]) -> Target:
    """A Target, or DETR's dict with `labels` [T], `boxes` [T, 4] (cxcywh fractions), perhaps `masks` -> Target."""
    if isinstance(target, Target):
        return target
    return Target(target["labels"], target["boxes"], target.get("masks"))


class MasksWhenRead:
    """A dataclass's field: the value that it was given, or the masks of all queries, computed when it is first read."""

    def __get__(self, owner: Predictions | None, _: type | None = None) -> Tensor | None:
        if owner is None:
            return None  # the field's default
        if owner.__dict__["_masks"] is None and owner.mask_head is not None:
            everything = torch.arange(owner.logits.shape[2])
            owner.masks = torch.stack(owner.mask_head([everything] * owner.logits.shape[1]))
        return owner.__dict__["_masks"]

    def __set__(self, owner: Predictions, value: Tensor | None) -> None:
        owner.__dict__["_masks"] = value


@dataclass
class Predictions:
    """The model's output of every decoder layer; the last layer's is the result.

    logits: [L, B, Q, C] before sigmoid or softmax.
    boxes_cxcywh: [L, B, Q, 4] in 0..1, fractions of each image's own unpadded size.
    activation: from logits to scores, "sigmoid" (focal loss) or "softmax" (the last class is "no object").
    masks: [B, Q, h / 4, w / 4] logits of all queries of the last layer, at a quarter of the batch's padded size,
        rounded up; computed when they are first read. None: a model without masks.
    mask_head: computes the masks of chosen queries, see `masks_of`; None: a model without masks.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    activation: str = "sigmoid"
    masks: MasksWhenRead = MasksWhenRead()
    mask_head: Callable[[Sequence[Tensor]], list[Tensor]] | None = None

    @property
    def has_masks(self) -> bool:
        return self.mask_head is not None or self.masks is not None

    def masks_of(self, queries: Sequence[Tensor]) -> list[Tensor]:
        """queries: for each of the B images the chosen ones, [N] int64 on any device -> its logits [N, h / 4, w / 4].

        Computed for these queries alone, a few at a time, in memory that their number does not change but for the
        result; taken from `masks`, if these have been given or read. UserError: a model without masks.
        """
        if self.mask_head is not None and self.__dict__["_masks"] is None:
            return self.mask_head(queries)
        if self.masks is None:
            raise UserError("these are predictions of a model without masks: build it with model.masks=true")
        return [masks[chosen.to(masks.device)] for masks, chosen in zip(self.masks, queries, strict=True)]


@dataclass
class Detections:
    """The detections of one image, best first. scores: [N]. labels: [N] outputs. boxes_xyxy: [N, 4] pixels.

    queries: [N] int64, the query of each. masks: [N, H, W] bool, on the CPU, at the image's size; None: not asked for.
    """

    scores: Tensor
    labels: Tensor
    boxes_xyxy: Tensor
    queries: Tensor
    masks: Tensor | None = None
