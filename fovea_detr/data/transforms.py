"""From a decoded image and its boxes in pixels to what the network sees: the published augmentation, the tiny recipe.

Every random draw comes from a generator of (seed, epoch, image id). It is handed down explicitly, so neither the number
of workers nor the order of the images matters, and torch's global generators are neither read nor advanced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from fovea_detr.boxes import xyxy_to_cxcywh
from fovea_detr.types import Target

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SHORT_SIDES = tuple(range(480, 801, 32))  # pixels
CROP_SHORT_SIDES = (400, 500, 600)
CROP_SIDES = (384, 600)
Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Sample:
    """image: [3, h, w] uint8. boxes: [T, 4] float32, left, top, right, bottom in pixels. labels: [T] int64."""

    image: Tensor
    boxes: BoundingBoxes
    labels: Tensor

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.image.shape[-2], self.image.shape[-1]


def pixel_boxes(boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> BoundingBoxes:
    """[T, 4] as torchvision knows them, on an image of this size."""
    return BoundingBoxes(boxes_xyxy, format=BoundingBoxFormat.XYXY, canvas_size=size_hw)  # pyright: ignore[reportCallIssue]


class Transform:
    """`prepare` is the same every time (done once where images stay in memory); `augment` is drawn every epoch."""

    def prepare(self, sample: Sample) -> Sample:
        return sample

    def augment(self, sample: Sample, generator: Generator) -> Sample:  # noqa: ARG002
        return sample


@dataclass(frozen=True)
class ShortSide(Transform):
    """Evaluation: the short side resized to `side` pixels, less where the long one would exceed `max_side`."""

    side: int
    max_side: int

    def prepare(self, sample: Sample) -> Sample:
        return resize(sample, short_side_size(sample.size_hw, self.side, self.max_side))


@dataclass(frozen=True)
class LongSide(Transform):
    """The tiny recipe: the long side resized to `side` pixels, then a flip with probability `flip`."""

    side: int
    flip: float = 0.0

    def prepare(self, sample: Sample) -> Sample:
        return resize(sample, short_side_size(sample.size_hw, self.side, self.side))

    def augment(self, sample: Sample, generator: Generator) -> Sample:
        return horizontal_flip(sample) if _happens(self.flip, generator) else sample


@dataclass(frozen=True)
class PublishedTraining(Transform):
    """DETR's training augmentation: a flip; in half the cases a first resize and a crop; a resize to a random side."""

    short_sides: Sequence[int] = SHORT_SIDES
    max_side: int = 1333
    crop_short_sides: Sequence[int] = CROP_SHORT_SIDES
    crop_sides: tuple[int, int] = CROP_SIDES
    flip: float = 0.5
    crop: float = 0.5

    def augment(self, sample: Sample, generator: Generator) -> Sample:
        if _happens(self.flip, generator):
            sample = horizontal_flip(sample)
        if _happens(self.crop, generator):
            side = _one_of(self.crop_short_sides, generator)
            sample = resize(sample, short_side_size(sample.size_hw, side, max_side=None))
            sample = random_crop(sample, self.crop_sides, generator)
        side = _one_of(self.short_sides, generator)
        return resize(sample, short_side_size(sample.size_hw, side, self.max_side))


def train_transform(
    kind: str,
    *,
    short_sides: Sequence[int] = SHORT_SIDES,
    max_side: int = 1333,
    crop_short_sides: Sequence[int] = CROP_SHORT_SIDES,
    crop_sides: tuple[int, int] = CROP_SIDES,
    flip: float = 0.5,
    long_side: int = 128,
) -> Transform:
    """kind: "coco" (the published augmentation) or "tiny" (only `flip` and `long_side` matter). Sizes in pixels."""
    if kind == "coco":
        return PublishedTraining(short_sides, max_side, crop_short_sides, crop_sides, flip)
    if kind == "tiny":
        return LongSide(long_side, flip)
    raise ValueError(f"there is no recipe '{kind}'; choose coco or tiny")


def eval_transform(kind: str, *, short_side: int = 800, max_side: int = 1333, long_side: int = 128) -> Transform:
    """kind: "coco" (short side 800, long side at most 1333) or "tiny" (long side 128). Sizes in pixels."""
    if kind == "coco":
        return ShortSide(short_side, max_side)
    if kind == "tiny":
        return LongSide(long_side)
    raise ValueError(f"there is no recipe '{kind}'; choose coco or tiny")


def mixed_seed(*parts: int | str) -> int:
    """63 bits that differ for any two different tuples: neighbouring seeds, epochs and images get unrelated draws."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seeded(transform: Transform, sample: Sample, seed: int, epoch: int, image_id: int) -> Sample:
    """`transform.augment` with draws that are a function of (seed, epoch, image_id) and of nothing else."""
    generator = Generator().manual_seed(mixed_seed("augment", seed, epoch, image_id))
    return transform.augment(sample, generator)


def short_side_size(size_hw: tuple[int, int], side: int, max_side: int | None) -> tuple[int, int]:
    """(height, width) with the short side at `side`, or below where the long side would exceed `max_side`."""
    short, long = min(size_hw), max(size_hw)
    if max_side is not None and long * side > max_side * short:
        side = max(1, round(max_side * short / long))
    # Truncated, as the published code does: its figures were measured at these sizes.
    long_side = min(int(side * long / short), max_side or 1 << 30)
    return (side, long_side) if size_hw[0] <= size_hw[1] else (long_side, side)


def resize(sample: Sample, size_hw: tuple[int, int]) -> Sample:
    if sample.size_hw == size_hw:
        return sample
    image = F.resize(sample.image, list(size_hw), antialias=True)
    return replace(sample, image=image, boxes=F.resize(sample.boxes, list(size_hw)))


def horizontal_flip(sample: Sample) -> Sample:
    return replace(sample, image=F.horizontal_flip(sample.image), boxes=F.horizontal_flip(sample.boxes))


def random_crop(sample: Sample, sides: tuple[int, int], generator: Generator) -> Sample:
    """Each side drawn from sides[0]..min(side, sides[1]); one shorter than sides[0] stays whole. Emptied boxes go."""
    height, width = (_between(min(sides[0], side), min(sides[1], side), generator) for side in sample.size_hw)
    top = _between(0, sample.size_hw[0] - height, generator)
    left = _between(0, sample.size_hw[1] - width, generator)
    boxes = F.clamp_bounding_boxes(F.crop(sample.boxes, top, left, height, width))
    keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    image = F.crop(sample.image, top, left, height, width)
    return Sample(image, pixel_boxes(boxes[keep], (height, width)), sample.labels[keep])


def normalize(image: Tensor) -> Tensor:
    """[3, h, w] uint8 -> float32 with ImageNet's mean and deviation taken out."""
    return F.normalize(F.to_dtype(image, torch.float32, scale=True), list(IMAGENET_MEAN), list(IMAGENET_STD))


def as_target(sample: Sample) -> Target:
    """The boxes as (cx, cy, w, h) fractions of the sample's own size."""
    height, width = sample.size_hw
    boxes_pixels = xyxy_to_cxcywh(sample.boxes.as_subclass(Tensor))  # pyright: ignore[reportArgumentType]
    return Target(sample.labels, boxes_pixels / boxes_pixels.new_tensor([width, height, width, height]))


def _between(low: int, high: int, generator: Generator) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _one_of(choices: Sequence[Choice], generator: Generator) -> Choice:
    return choices[_between(0, len(choices) - 1, generator)]


def _happens(probability: float, generator: Generator) -> bool:
    return float(torch.rand((), generator=generator)) < probability
