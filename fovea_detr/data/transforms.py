"""Augmentation and resizing: the published recipe and the tiny one.

Every random number comes from a generator seeded by (seed, epoch, image id), which is passed as an argument. So the
number of workers and the order of the images do not matter, and torch's global generators are not used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import torch
from torch import Generator

from fovea_detr.data.samples import Sample, SizeHW, Window, crop, horizontal_flip, resize

SHORT_SIDES = tuple(range(480, 801, 32))  # pixels
CROP_SHORT_SIDES = (400, 500, 600)
CROP_SIDES = (384, 600)
MOST_ENLARGED = 1 << 26  # pixels before a crop, 200 MB: an image of 3000 x 1 would become one of 1,200,000 x 400
Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Plan:
    """The operations on an image with all random choices made, in this order: flip, resize, crop, resize.

    size_hw: of the result. crop_from_hw: the size before the crop to `window`; None: no crop. No pixel is needed.
    """

    size_hw: SizeHW
    flip: bool = False
    crop_from_hw: SizeHW | None = None
    window: Window | None = None

    def applied(self, sample: Sample) -> Sample:
        if self.flip:
            sample = horizontal_flip(sample)
        if self.crop_from_hw is not None and self.window is not None:
            sample = crop(resize(sample, self.crop_from_hw), self.window)
        return resize(sample, self.size_hw)


class Transform:
    """`prepare` is deterministic (done once if images are kept in memory); `augment` is random, another every epoch.

    Both depend on the image's size only, so the size of the result is known before the image is read.
    """

    def prepared_hw(self, size_hw: SizeHW) -> SizeHW:
        return size_hw

    def plan(self, size_hw: SizeHW, generator: Generator) -> Plan:  # noqa: ARG002
        """The operations on a prepared image of this size."""
        return Plan(size_hw)

    def prepare(self, sample: Sample) -> Sample:
        return resize(sample, self.prepared_hw(sample.size_hw))

    def augment(self, sample: Sample, generator: Generator) -> Sample:
        return self.plan(sample.size_hw, generator).applied(sample)

    def largest_sizes(self, size_hw: SizeHW) -> list[SizeHW]:
        """The largest sizes (height, width) in pixels of an augmented image: every other one fits into one of these."""
        return [self.prepared_hw(size_hw)]


@dataclass(frozen=True)
class ShortSide(Transform):
    """Evaluation: the short side resized to `side` pixels, or less so that the long one is about `max_side` at most."""

    side: int
    max_side: int

    def prepared_hw(self, size_hw: SizeHW) -> SizeHW:
        return short_side_size(size_hw, self.side, self.max_side)


@dataclass(frozen=True)
class LongSide(Transform):
    """The tiny recipe: the long side resized to `side` pixels, then a flip with probability `flip`."""

    side: int
    flip: float = 0.0

    def prepared_hw(self, size_hw: SizeHW) -> SizeHW:
        height, width = short_side_size(size_hw, self.side, self.side)
        return min(height, self.side), min(width, self.side)

    def plan(self, size_hw: SizeHW, generator: Generator) -> Plan:
        return Plan(size_hw, flip=_happens(self.flip, generator))


@dataclass(frozen=True)
class PublishedTraining(Transform):
    """DETR's training augmentation: a flip; with probability 0.5 a resize and a crop; a resize to a random short side.

    An image that would be enlarged beyond MOST_ENLARGED (an aspect ratio above 186) is not cropped.

    In the published order. The flip at full size costs 0.08 ms, 1 % of the pipeline. A crop before the first resize
    would be faster but would change the pixels at the window's edges.
    """

    short_sides: Sequence[int] = SHORT_SIDES
    max_side: int = 1333
    crop_short_sides: Sequence[int] = CROP_SHORT_SIDES
    crop_sides: tuple[int, int] = CROP_SIDES
    flip: float = 0.5
    crop: float = 0.5

    def plan(self, size_hw: SizeHW, generator: Generator) -> Plan:
        flip, crop_from_hw, window = _happens(self.flip, generator), None, None
        if _happens(self.crop, generator):
            enlarged_hw = short_side_size(size_hw, _one_of(self.crop_short_sides, generator), max_side=None)
            if enlarged_hw[0] * enlarged_hw[1] <= MOST_ENLARGED:
                crop_from_hw, window = enlarged_hw, random_window(enlarged_hw, self.crop_sides, generator)
                size_hw = (window.height, window.width)
        side = _one_of(self.short_sides, generator)
        return Plan(short_side_size(size_hw, side, self.max_side), flip, crop_from_hw, window)

    def largest_sizes(self, size_hw: SizeHW) -> list[SizeHW]:
        """Of the image and of its crops: a crop of a landscape image may be a portrait, and is enlarged again."""
        side, shapes = max(self.short_sides), [size_hw]
        for first_side in self.crop_short_sides if self.crop > 0 else ():
            shapes += self._longest_crops(short_side_size(size_hw, first_side, max_side=None))
        return _without_smaller(short_side_size(shape, side, self.max_side) for shape in shapes)

    def _longest_crops(self, size_hw: SizeHW) -> list[SizeHW]:
        """The widest and the highest crop; all crops if `max_side` reduces some, as the published sides never do."""
        (lowest, highest), (narrowest, widest) = (_crop_range(side, self.crop_sides) for side in size_hw)
        if max(self.short_sides) * max(widest / lowest, highest / narrowest) <= self.max_side:
            return [(lowest, widest), (highest, narrowest)]
        return list(product(range(lowest, highest + 1), range(narrowest, widest + 1)))


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
    raise ValueError(f"data.recipe={kind} is not one of coco, tiny")


def published_sides(largest: int) -> dict[str, tuple[int, ...]]:
    """The sizes of the published training, scaled so that the largest short side is this one: 800 leaves them."""
    sides = {"short_sides": SHORT_SIDES, "crop_short_sides": CROP_SHORT_SIDES, "crop_sides": CROP_SIDES}
    return {
        name: tuple(max(1, round(side * largest / SHORT_SIDES[-1])) for side in values)
        for name, values in sides.items()
    }


def eval_transform(kind: str, *, short_side: int = 800, max_side: int = 1333, long_side: int = 128) -> Transform:
    """kind: "coco" (short side 800, long side about 1333 at most) or "tiny" (long side 128). Sizes in pixels."""
    if kind == "coco":
        return ShortSide(short_side, max_side)
    if kind == "tiny":
        return LongSide(long_side)
    raise ValueError(f"data.recipe={kind} is not one of coco, tiny")


def mixed_seed(*parts: int | str) -> int:
    """A 63-bit hash: neighbouring seeds, epochs and images get unrelated random numbers."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def draws(seed: int, epoch: int, image_id: int) -> Generator:
    """The random generator of one image's augmentation in one epoch."""
    return Generator().manual_seed(mixed_seed("augment", seed, epoch, image_id))


def drawn_hw(transform: Transform, size_hw: SizeHW, seed: int, epoch: int, image_id: int) -> SizeHW:
    """The size of this image in this epoch after augmentation; the image is not read."""
    return transform.plan(transform.prepared_hw(size_hw), draws(seed, epoch, image_id)).size_hw


def short_side_size(size_hw: SizeHW, side: int, max_side: int | None) -> SizeHW:
    """(height, width) with the short side at `side`, or less so that the long side is about `max_side` at most.

    As in DETR, whose results were measured at these sizes: the short side is rounded, and the long side follows from
    it. So the long side exceeds `max_side` by up to half the aspect ratio: 640 x 201 becomes 1334 x 419 with 1333. A
    short side that would be rounded to 0, where DETR fails, is 1, and the long side `max_side`.
    """
    short, long = min(size_hw), max(size_hw)
    long_side = int(side * long / short)
    if max_side is not None and long * side > max_side * short:
        side = round(max_side * short / long)
        side, long_side = (side, int(side * long / short)) if side else (1, max_side)
    return (side, long_side) if size_hw[0] <= size_hw[1] else (long_side, side)


def _without_smaller(sizes_hw: Iterable[SizeHW]) -> list[SizeHW]:
    """The sizes (height, width) that fit into no other one."""
    kept, widest = [], 0
    for height, width in sorted(set(sizes_hw), reverse=True):
        if width > widest:
            kept.append((height, width))
            widest = width
    return kept


def random_window(size_hw: SizeHW, sides: tuple[int, int], generator: Generator) -> Window:
    """Each side drawn from sides[0]..min(side, sides[1]); a side shorter than sides[0] is kept whole."""
    height, width = (_between(*_crop_range(side, sides), generator) for side in size_hw)
    top = _between(0, size_hw[0] - height, generator)
    return Window(top, _between(0, size_hw[1] - width, generator), height, width)


def _crop_range(side: int, sides: tuple[int, int]) -> tuple[int, int]:
    """The shortest and the longest possible side of a crop."""
    return min(sides[0], side), min(sides[1], side)


def _between(low: int, high: int, generator: Generator) -> int:
    """An integer from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _one_of(choices: Sequence[Choice], generator: Generator) -> Choice:
    return choices[_between(0, len(choices) - 1, generator)]


def _happens(probability: float, generator: Generator) -> bool:
    return float(torch.rand((), generator=generator)) < probability
