"""The data set of a split: images and targets as tensors, decoded and augmented one at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fovea_detr.data.annotations import CocoSplit
from fovea_detr.data.flaws import EXAMPLES
from fovea_detr.data.headers import size_mismatch
from fovea_detr.data.masks import Masks
from fovea_detr.data.panoptic import inclusive_boxes
from fovea_detr.data.pixels import decode
from fovea_detr.data.samples import Sample, as_target
from fovea_detr.data.transforms import Transform, drawn_hw, draws
from fovea_detr.errors import DataError
from fovea_detr.types import Target


class Draw(NamedTuple):
    """A key of CocoDataset: which image, and the epoch and the seed of its augmentation."""

    index: int
    epoch: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Example:
    """image: [3, h, w] uint8, as the model takes it. original_size_hw: pixels, as annotated and on disk."""

    image: Tensor
    target: Target
    image_id: int
    original_size_hw: tuple[int, int]


class CocoDataset(Dataset[Example]):
    """The images of a split, as any reader returns it. Keys are `Draw`s, or plain indices: those of epoch 0, seed 0.

    in_memory: decode and `prepare` every image once, in the constructor, and keep them as uint8.
    DataError, from an item (or the constructor, if in_memory): the image cannot be read.
    """

    def __init__(self, split: CocoSplit, transform: Transform, *, in_memory: bool = False) -> None:
        self.annotations = split
        self.transform = transform
        self._memory: list[Sample] | None = None
        if in_memory:
            self._memory = [transform.prepare(self.sample(index)) for index in range(len(self))]

    def __len__(self) -> int:
        return len(self.annotations.image_ids)

    def __getitem__(self, key: int | Draw) -> Example:
        draw = key if isinstance(key, Draw) else Draw(key)
        prepared = self._memory[draw.index] if self._memory else self.transform.prepare(self.sample(draw.index))
        image_id = int(self.annotations.image_ids[draw.index])
        sample = self.transform.augment(prepared, draws(draw.seed, draw.epoch, image_id))
        return Example(sample.image, as_target(sample), image_id, self._size_hw(draw.index))

    def aspect_ratios(self, seed: int, epoch: int) -> list[float]:
        """Width / height of every image after this epoch's augmentation. Reads no image; about 30 us each."""
        return [
            width / height
            for index, image_id in enumerate(self.annotations.image_ids.tolist())
            for height, width in [drawn_hw(self.transform, self._size_hw(index), seed, epoch, image_id)]
        ]

    def sample(self, index: int) -> Sample:
        """The image as on disk but upright, its boxes in pixels and, if they are wanted, its masks."""
        split, size_hw = self.annotations, self._size_hw(index)
        path = split.folder / split.file_names[index]
        image = decode(path)
        if tuple(image.shape[1:]) != size_hw:
            raise DataError(size_mismatch(size_hw, path) or f"{path}: changed while it was read")
        mine = slice(split.starts[index], split.starts[index + 1])
        sample = Sample(image, torch.from_numpy(split.boxes_xyxy[mine]), torch.from_numpy(split.labels[mine]))
        return sample if split.masks is None else with_masks(sample, split.masks[mine])

    def _size_hw(self, index: int) -> tuple[int, int]:
        height, width = self.annotations.sizes_hw[index].tolist()
        return height, width


def with_masks(sample: Sample, masks: Masks) -> Sample:
    """An image with the masks of its objects, or with the boxes that come from them. DataError: they cannot be read."""
    drawn = masks.drawn(sample.size_hw)
    boxes_xyxy = torch.from_numpy(inclusive_boxes(drawn)) if masks.give_boxes else sample.boxes_xyxy
    return replace(sample, boxes_xyxy=boxes_xyxy, masks=torch.from_numpy(drawn) if masks.are_kept else None)


def check_images(dataset: CocoDataset, threads: int = 4) -> None:
    """Decode every image of the data set. DataError: the images that cannot be read or have another size."""

    def failure(index: int) -> str | None:
        try:
            dataset.sample(index)
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(threads) as pool:
        failures = [line for line in pool.map(failure, range(len(dataset))) if line is not None]
    if failures:
        more = f"; and {len(failures) - EXAMPLES} more" if len(failures) > EXAMPLES else ""
        raise DataError(f"{len(failures)} of {len(dataset)} images: {'; '.join(failures[:EXAMPLES])}{more}")
