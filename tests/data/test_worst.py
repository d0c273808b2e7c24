"""The worst batch against every batch that a small data set can give."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import pytest
import torch

from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.readers import read_coco
from fovea_detr.data.transforms import train_transform
from fovea_detr.data.worst import worst_batch
from tests.data.builders import box, write_coco

LANDSCAPES_AND_PORTRAITS = [(64, 48), (48, 64), (60, 20), (21, 60), (50, 50)]  # (width, height)
ONE_LARGE = [(10, 10), (64, 64), (12, 10)]
ONE_WITH_BOTH = [(90, 30), (30, 30), (31, 30)]  # its crops are the tallest and the widest of all


@pytest.mark.parametrize("sizes_wh", [LANDSCAPES_AND_PORTRAITS, ONE_LARGE, ONE_WITH_BOTH, [(64, 48)] * 3])
@pytest.mark.parametrize("kind", ["coco", "tiny"])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_padding_is_that_of_the_worst_of_all_batches(
    tmp_path: Path, sizes_wh: list[tuple[int, int]], kind: str, batch_size: int
) -> None:
    dataset = CocoDataset(read_coco(write_coco(tmp_path, sizes_wh), "train"), train_transform(kind))
    worst = worst_batch(dataset, batch_size)
    choices = [dataset.transform.largest_sizes((height, width)) for width, height in sizes_wh]
    areas = [
        max(height for height, _ in sizes) * max(width for _, width in sizes)
        for images in combinations(choices, batch_size)
        for sizes in product(*images)
    ]
    height, width = worst.padded_hw
    assert height * width == max(areas)
    assert len(worst.sizes_hw) == len(worst.objects) == batch_size


def test_portraits_and_landscapes_are_padded_to_the_square_of_the_longest_side(tmp_path: Path) -> None:
    dataset = CocoDataset(read_coco(write_coco(tmp_path, [(64, 36), (36, 64)]), "train"), train_transform("coco"))
    assert worst_batch(dataset, 2).padded_hw == (1333, 1333)
    assert worst_batch(dataset, 1).padded_hw in ((1250, 800), (800, 1250)), (
        "a crop of an image that would be 1333 x 750"
    )


def test_objects_are_the_largest_counts(tmp_path: Path) -> None:
    boxes = [box(image, 1, (1, 1, 5, 5)) for image, count in ((1, 2), (2, 0), (3, 7)) for _ in range(count)]
    boxes.append(box(2, 1, (1, 1, 9, 9), iscrowd=1))
    dataset = CocoDataset(read_coco(write_coco(tmp_path, [(64, 48)] * 3, boxes), "train"), train_transform("tiny"))
    assert worst_batch(dataset, 2).objects == (7, 2)
    assert str(worst_batch(dataset, 3)) == "3 x 96 x 128, 9 objects"


def test_a_made_up_batch_looks_like_a_loaded_one(tmp_path: Path) -> None:
    dataset = CocoDataset(read_coco(write_coco(tmp_path, [(64, 36), (36, 64)]), "train"), train_transform("tiny"))
    generators = torch.get_rng_state()
    batch, targets = worst_batch(dataset, 2).made_up()
    assert torch.equal(torch.get_rng_state(), generators)
    assert batch.images.shape == (2, 3, 128, 128)
    assert batch.sizes_hw.sort().values.tolist() == [[72, 128], [72, 128]]
    assert [(len(t.labels), *t.boxes_cxcywh.shape) for t in targets] == [(1, 1, 4)] * 2
