"""Resize, flip and crop are torchvision's on pixels and boxes, elementwise, in whatever memory the pixels lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from fovea_detr.data.coco import CocoDataset, Draw
from fovea_detr.data.readers import read_coco
from fovea_detr.data.samples import Sample, Window, as_target, crop, horizontal_flip, interleaved, resize
from fovea_detr.data.transforms import draws, short_side_size, train_transform
from tests.data.builders import write_coco

SHORT_SIDES, CROP_SHORT_SIDES, CROP_SIDES, MAX_SIDE = (48, 64, 80), (40, 50), (36, 60), 110
SIZES = [(60, 80), (80, 60), (33, 47), (30, 120), (41, 41)]


def noise(size_hw: tuple[int, int], seed: int = 0) -> Sample:
    """Planes of noise with boxes that touch the edges, cross each other, and are thin."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8, generator=generator)
    corners = torch.rand(20, 2, 2, generator=generator).sort(dim=1).values
    corners[0], corners[1] = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.5], [0.01, 1.0]])
    boxes = (corners * torch.tensor(size_hw[::-1])).flatten(1)
    return Sample(image, boxes, torch.arange(20))


def wrapped(boxes: Tensor, size_hw: tuple[int, int]) -> BoundingBoxes:
    return BoundingBoxes(boxes, format=BoundingBoxFormat.XYXY, canvas_size=size_hw)  # pyright: ignore[reportCallIssue]


class Twin:
    """The published augmentation in torchvision's own words: planes, wrapped boxes, a draw where it is used."""

    def __init__(self, sample: Sample, generator: Generator) -> None:
        self.image, self.labels, self.generator = sample.image.contiguous(), sample.labels, generator
        self.boxes: Any = wrapped(sample.boxes_xyxy, sample.size_hw)

    def number(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def resize(self, side: int, max_side: int | None) -> None:
        height, width = self.image.shape[1:]
        size = list(short_side_size((height, width), side, max_side))
        self.image, self.boxes = F.resize(self.image, size, antialias=True), F.resize(self.boxes, size)

    def crop(self, low: int, high: int) -> None:
        height, width = (self.number(min(low, side), min(high, side)) for side in self.image.shape[1:])
        top = self.number(0, self.image.shape[1] - height)
        left = self.number(0, self.image.shape[2] - width)
        boxes = F.clamp_bounding_boxes(F.crop(self.boxes, top, left, height, width))
        keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        self.image = F.crop(self.image, top, left, height, width)
        self.boxes, self.labels = wrapped(boxes[keep], (height, width)), self.labels[keep]

    def augment(self) -> Twin:
        if float(torch.rand((), generator=self.generator)) < 0.5:
            self.image, self.boxes = F.horizontal_flip(self.image), F.horizontal_flip(self.boxes)
        if float(torch.rand((), generator=self.generator)) < 0.5:
            self.resize(CROP_SHORT_SIDES[self.number(0, len(CROP_SHORT_SIDES) - 1)], None)
            self.crop(*CROP_SIDES)
        self.resize(SHORT_SIDES[self.number(0, len(SHORT_SIDES) - 1)], MAX_SIDE)
        return self


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("in_planes", [False, True])
def test_the_published_augmentation_is_torchvisions_elementwise(size_hw: tuple[int, int], in_planes: bool) -> None:
    transform = train_transform(
        "coco", short_sides=SHORT_SIDES, max_side=MAX_SIDE, crop_short_sides=CROP_SHORT_SIDES, crop_sides=CROP_SIDES
    )
    planes = noise(size_hw)
    sample = planes if in_planes else Sample(interleaved(planes.image), planes.boxes_xyxy, planes.labels)
    for epoch in range(24):
        found = transform.augment(sample, draws(3, epoch, 7))
        twin = Twin(planes, draws(3, epoch, 7)).augment()
        assert found.image.equal(twin.image)
        assert found.boxes_xyxy.equal(twin.boxes.as_subclass(Tensor))
        assert found.labels.equal(twin.labels)


def test_each_step_is_torchvisions() -> None:
    sample, boxes = noise((60, 80)), wrapped(noise((60, 80)).boxes_xyxy, (60, 80))
    assert horizontal_flip(sample).image.equal(F.horizontal_flip(sample.image))
    assert horizontal_flip(sample).boxes_xyxy.equal(F.horizontal_flip(boxes).as_subclass(Tensor))
    larger = resize(sample, (71, 101))
    assert larger.image.equal(F.resize(sample.image, [71, 101], antialias=True))
    assert larger.boxes_xyxy.equal(F.resize(boxes, [71, 101]).as_subclass(Tensor))
    assert crop(sample, Window(5, 9, 33, 44)).image.equal(F.crop(sample.image, 5, 9, 33, 44))


def test_pixels_stay_interleaved_and_dense_through_every_step(tmp_path: Path) -> None:
    dataset = CocoDataset(
        read_coco(write_coco(tmp_path, [(80, 60)]), "train"), train_transform("coco", short_sides=(48,))
    )
    read = dataset.sample(0)
    for sample in (read, horizontal_flip(read), crop(read, Window(5, 9, 33, 44)), resize(read, (48, 64))):
        assert sample.image.permute(1, 2, 0).is_contiguous()
    assert all(dataset[Draw(0, epoch)].image.permute(1, 2, 0).is_contiguous() for epoch in range(8))


def test_targets_are_fractions_of_the_samples_own_size() -> None:
    sample = Sample(torch.zeros(3, 60, 80, dtype=torch.uint8), torch.tensor([[10.0, 20, 50, 40]]), torch.tensor([7]))
    target = as_target(sample)
    assert type(target.boxes_cxcywh) is Tensor
    torch.testing.assert_close(target.boxes_cxcywh, torch.tensor([[30 / 80, 30 / 60, 40 / 80, 20 / 60]]))
    assert target.labels.tolist() == [7]
