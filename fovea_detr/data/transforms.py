"""What is done to an image before the network sees it: the published augmentation, the tiny recipe.

Every random draw comes from a generator of (seed, epoch, image id). It is handed down explicitly, so neither the number
of workers nor the order of the images matters, and torch's global generators are neither read nor advanced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Generator

from fovea_detr.data.samples import Sample, SizeHW, Window, crop, horizontal_flip, resize

SHORT_SIDES = tuple(range(480, 801, 32))  # pixels
CROP_SHORT_SIDES = (400, 500, 600)
CROP_SIDES = (384, 600)
Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Plan:
    """What is done to an image, in this order, with every draw made; None: left out. It depends on no pixel.

    size_hw: of the result. crop_from_hw: the size that `window` is cut from.
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
    """`prepare` is the same every time (done once where images stay in memory); `augment` is drawn every epoch.

    Both are told by sizes alone, so that the size of the result is known before an image is read.
    """

    def prepared_hw(self, size_hw: SizeHW) -> SizeHW:
        return size_hw

    def plan(self, size_hw: SizeHW, generator: Generator) -> Plan:  # noqa: ARG002
        """What is done to a prepared image of this size."""
        return Plan(size_hw)

    def prepare(self, sample: Sample) -> Sample:
        return resize(sample, self.prepared_hw(sample.size_hw))

    def augment(self, sample: Sample, generator: Generator) -> Sample:
        return self.plan(sample.size_hw, generator).applied(sample)

    def largest_sizes(self, size_hw: SizeHW) -> list[SizeHW]:
        """What an image of this size can become, (height, width) in pixels, less what fits into one of these."""
        return [self.prepared_hw(size_hw)]


@dataclass(frozen=True)
class ShortSide(Transform):
    """Evaluation: the short side resized to `side` pixels, less where the long one would exceed `max_side`."""

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
        return short_side_size(size_hw, self.side, self.side)

    def plan(self, size_hw: SizeHW, generator: Generator) -> Plan:
        return Plan(size_hw, flip=_happens(self.flip, generator))


@dataclass(frozen=True)
class PublishedTraining(Transform):
    """DETR's training augmentation: a flip; in half the cases a first resize and a crop; a resize to a random side.

    The order is the published one: a flip of the image as it is on disk costs 0.08 ms, a hundredth of the whole, and
    cropping before the first resize would change the pixels at the window's edges.
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
            crop_from_hw = short_side_size(size_hw, _one_of(self.crop_short_sides, generator), max_side=None)
            window = random_window(crop_from_hw, self.crop_sides, generator)
            size_hw = (window.height, window.width)
        side = _one_of(self.short_sides, generator)
        return Plan(short_side_size(size_hw, side, self.max_side), flip, crop_from_hw, window)

    def largest_sizes(self, size_hw: SizeHW) -> list[SizeHW]:
        """A crop of a landscape image may be a portrait, and is enlarged again: three sizes, not one."""
        side, shapes = max(self.short_sides), [size_hw]
        for first_side in self.crop_short_sides if self.crop > 0 else ():
            height, width = short_side_size(size_hw, first_side, max_side=None)
            shapes += [self._longest_crop((height, width)), self._longest_crop((width, height))[::-1]]
        return list(dict.fromkeys(short_side_size(shape, side, self.max_side) for shape in shapes))

    def _longest_crop(self, size_hw: SizeHW) -> SizeHW:
        """The crop with the largest width / height, less where `max_side` would make such a one smaller again."""
        (lowest, highest), (_, widest) = (_crop_range(side, self.crop_sides) for side in size_hw)
        as_long_as_allowed = widest * max(self.short_sides) // self.max_side
        return max(lowest, min(highest, as_long_as_allowed)), widest


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


def draws(seed: int, epoch: int, image_id: int) -> Generator:
    """Where the augmentation of one image in one epoch takes its numbers from, and no other does."""
    return Generator().manual_seed(mixed_seed("augment", seed, epoch, image_id))


def drawn_hw(transform: Transform, size_hw: SizeHW, seed: int, epoch: int, image_id: int) -> SizeHW:
    """The size that this image will have in this epoch, without the image."""
    return transform.plan(transform.prepared_hw(size_hw), draws(seed, epoch, image_id)).size_hw


def short_side_size(size_hw: SizeHW, side: int, max_side: int | None) -> SizeHW:
    """(height, width) with the short side at `side`, or below where the long side would exceed `max_side`."""
    short, long = min(size_hw), max(size_hw)
    if max_side is not None and long * side > max_side * short:
        side = max(1, round(max_side * short / long))
    # Truncated, as the published code does: its figures were measured at these sizes.
    long_side = min(int(side * long / short), max_side or 1 << 30)
    return (side, long_side) if size_hw[0] <= size_hw[1] else (long_side, side)


def random_window(size_hw: SizeHW, sides: tuple[int, int], generator: Generator) -> Window:
    """Each side drawn from sides[0]..min(side, sides[1]); one shorter than sides[0] stays whole."""
    height, width = (_between(*_crop_range(side, sides), generator) for side in size_hw)
    top = _between(0, size_hw[0] - height, generator)
    return Window(top, _between(0, size_hw[1] - width, generator), height, width)


def _crop_range(side: int, sides: tuple[int, int]) -> tuple[int, int]:
    """The shortest and the longest side of a crop from an image's side."""
    return min(sides[0], side), min(sides[1], side)


def _between(low: int, high: int, generator: Generator) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _one_of(choices: Sequence[Choice], generator: Generator) -> Choice:
    return choices[_between(0, len(choices) - 1, generator)]


def _happens(probability: float, generator: Generator) -> bool:
    return float(torch.rand((), generator=generator)) < probability
