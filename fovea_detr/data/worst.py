"""The largest batch that a data set can give, computed from its annotations: no image is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Generator

from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.loader import collate_images
from fovea_detr.types import Batch, Target

Size = tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True)
class WorstBatch:
    """sizes_hw: of each image, before padding. objects: their number in each image."""

    sizes_hw: tuple[Size, ...]
    objects: tuple[int, ...]
    masks: bool = False  # whether the objects have them

    @property
    def padded_hw(self) -> Size:
        return padded(*self.sizes_hw)

    def __str__(self) -> str:
        height, width = self.padded_hw
        return f"{len(self.sizes_hw)} x {height} x {width}, {sum(self.objects)} objects"

    def made_up(self) -> tuple[Batch, list[Target]]:
        """Such a batch, as from a loader: pixels of noise, random boxes, all of category 0."""
        generator = Generator().manual_seed(0)
        images = [
            torch.randint(256, (3, *size_hw), generator=generator, dtype=torch.uint8) for size_hw in self.sizes_hw
        ]
        boxes = [0.25 + 0.5 * torch.rand(count, 4, generator=generator) for count in self.objects]
        drawn = [
            torch.rand(count, *size_hw, generator=generator) < 0.5 if self.masks else None
            for count, size_hw in zip(self.objects, self.sizes_hw, strict=True)
        ]
        labels = [torch.zeros(count, dtype=torch.int64) for count in self.objects]
        return collate_images(images), [Target(*one) for one in zip(labels, boxes, drawn, strict=True)]


def worst_batch(dataset: CocoDataset, batch_size: int) -> WorstBatch:
    """The largest padded area and the largest number of objects of `batch_size` images, in one batch.

    The area is given by one image or by two, a tall and a wide one; the other images fit into it.
    """
    sizes = largest_padding(dataset, min(batch_size, 2))
    counts = np.sort(np.diff(dataset.annotations.starts))[::-1][:batch_size].tolist()
    masks = dataset.annotations.masks
    with_masks = masks is not None and masks.are_kept
    return WorstBatch((*sizes, *[sizes[0]] * (batch_size - len(sizes))), tuple(counts), with_masks)


def largest_padding(dataset: CocoDataset, num_images: int) -> tuple[Size, ...]:
    """The augmented sizes of the one or two different images whose padded area is the largest."""
    unique, of_image = np.unique(dataset.annotations.sizes_hw, axis=0, return_inverse=True)
    choices = [dataset.transform.largest_sizes((height, width)) for height, width in unique.tolist()]
    sides = np.array([[*np.max(c, axis=0), max(h * w for h, w in c)] for c in choices])[of_image.reshape(-1)]  # [N, 3]
    # The pair is among the two tallest, the two widest and the two of the largest area.
    candidates = sorted({int(image) for order in np.argsort(-sides, axis=0, kind="stable").T for image in order[:2]})
    drawn = [(image, size) for image in candidates for size in choices[int(of_image.reshape(-1)[image])]]
    groups = [group for group in combinations(drawn, num_images) if len({image for image, _ in group}) == num_images]
    best = max(groups, key=lambda group: np.prod(padded(*(size for _, size in group))))
    return tuple(size for _, size in best)


def padded(*sizes_hw: Size) -> Size:
    """The size that images of these sizes are padded to."""
    return max(height for height, _ in sizes_hw), max(width for _, width in sizes_hw)
