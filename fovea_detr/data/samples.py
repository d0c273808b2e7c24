"""An image with its boxes in pixels and its masks, and the three operations on all of them: resize, flip, crop.

Boxes are plain tensors, which takes about two thirds of the time of torchvision's BoundingBoxes. Pixels and boxes equal
those of torchvision's transforms, elementwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as F

from fovea_detr.boxes import xyxy_to_cxcywh
from fovea_detr.types import Target

SizeHW = tuple[int, int]  # pixels


@dataclass(frozen=True)
class Sample:
    """image: [3, h, w] uint8. boxes_xyxy: [T, 4] float32, left, top, right, bottom in pixels. labels: [T] int64.

    masks: [T, h, w] bool; None where they are not wanted. The image's memory is interleaved (h, w, 3), as decoded:
    torchvision's uint8 resize is twice as fast on it as on separate planes, with the same pixels.
    """

    image: Tensor
    boxes_xyxy: Tensor
    labels: Tensor
    masks: Tensor | None = None

    @property
    def size_hw(self) -> SizeHW:
        return self.image.shape[-2], self.image.shape[-1]


@dataclass(frozen=True)
class Window:
    """The region that a crop keeps, in pixels."""

    top: int
    left: int
    height: int
    width: int


def resize(sample: Sample, size_hw: SizeHW) -> Sample:
    if sample.size_hw == size_hw:
        return sample
    (height, width), (before_height, before_width) = size_hw, sample.size_hw
    ratios = torch.tensor([width / before_width, height / before_height] * 2)
    image = F.resize(sample.image, [height, width], antialias=True)
    return Sample(image, sample.boxes_xyxy * ratios, sample.labels, _resized(sample.masks, size_hw))


def _resized(masks: Tensor | None, size_hw: SizeHW) -> Tensor | None:
    """As published, where it is `interpolate(masks.float(), nearest) > 0.5`; without numbers of four bytes a pixel."""
    if masks is None or not len(masks):
        return masks if masks is None else masks.new_zeros(0, *size_hw)
    return functional.interpolate(masks[:, None].view(torch.uint8), size_hw, mode="nearest")[:, 0].view(torch.bool)


def horizontal_flip(sample: Sample) -> Sample:
    left, top, right, bottom = sample.boxes_xyxy.unbind(1)
    width = sample.size_hw[1]
    boxes = torch.stack((width - right, top, width - left, bottom), dim=1)
    return replace(
        sample, image=sample.image.flip(-1), boxes_xyxy=boxes, masks=_each(sample.masks, lambda m: m.flip(-1))
    )


def crop(sample: Sample, window: Window) -> Sample:
    """Boxes are clipped to the window; objects whose box then has no area are removed, whatever their mask has."""
    top, left, height, width = window.top, window.left, window.height, window.width
    corner, limits = (torch.tensor(pair * 2, dtype=torch.float32) for pair in ([left, top], [width, height]))
    boxes = (sample.boxes_xyxy - corner).clamp(min=torch.zeros(4), max=limits)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    rows, columns = slice(top, top + height), slice(left, left + width)
    image = interleaved(sample.image[:, rows, columns])
    return Sample(image, boxes[keep], sample.labels[keep], _each(sample.masks, lambda m: m[keep, rows, columns]))


def _each(masks: Tensor | None, change: Callable[[Tensor], Tensor]) -> Tensor | None:
    return None if masks is None else change(masks)


def interleaved(image: Tensor) -> Tensor:
    """[3, h, w] -> a copy in dense (h, w, 3) memory: a resize of a view of a larger image takes twice as long."""
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def as_target(sample: Sample) -> Target:
    """The boxes as (cx, cy, w, h), fractions of the sample's size."""
    height, width = sample.size_hw
    boxes_pixels = xyxy_to_cxcywh(sample.boxes_xyxy)
    fractions = boxes_pixels / boxes_pixels.new_tensor([width, height, width, height])
    return Target(sample.labels, fractions, sample.masks)
