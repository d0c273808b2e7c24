"""Sample predictions: which images, what is drawn on them, and where they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fovea_detr.config.schema import Data
from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.readers import READERS
from fovea_detr.data.samples import Sample
from fovea_detr.data.transforms import eval_transform
from fovea_detr.evaluation.coco import DetectionTable
from fovea_detr.evaluation.drawing import COLOURS
from fovea_detr.runs.folder import RunFolder
from fovea_detr.training.samples import THRESHOLD, drawn, fixed_images, write_samples
from tests.data.builders import write_coco

NAMES = {1: "cat", 2: "dog"}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([3, 1, 2], [1, 2, 0]), ([40, 10, 30, 20], [1, 3, 2, 0]), (list(range(100)), [0, 25, 50, 75]), ([], [])],
)
def test_the_images_are_evenly_spaced_by_id(ids: list[int], expected: list[int]) -> None:
    assert fixed_images(np.array(ids, np.int64)) == expected


def black(height: int, width: int) -> Sample:
    return Sample(torch.zeros(3, height, width, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))


def colour(category: int) -> tuple[int, ...]:
    return tuple(bytes.fromhex(COLOURS[category][1:]))


def test_boxes_of_known_classes_above_the_threshold_are_drawn() -> None:
    rows = torch.tensor(
        [
            [100.0, 100, 50, 60, 0.9, 1],
            [200.0, 100, 50, 60, THRESHOLD - 0.01, 2],
            [300.0, 100, 50, 60, 0.9, 3],
        ],
        dtype=torch.float64,
    )
    picture = drawn(black(300, 400), rows, NAMES)
    assert picture.size == (400, 300)
    assert picture.getpixel((150, 130)) == colour(1), "the right side of the box"
    assert picture.getpixel((250, 130)) == picture.getpixel((350, 130)) == (0, 0, 0)


def test_a_large_image_is_drawn_smaller_with_its_boxes() -> None:
    rows = torch.tensor([[800.0, 400, 400, 200, 0.9, 2]], dtype=torch.float64)
    picture = drawn(black(800, 1600), rows, NAMES)
    assert picture.size == (800, 400)
    assert picture.getpixel((600, 250)) == colour(2)


def test_the_pictures_are_written_into_the_claimed_folder(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data", [(64, 48)] * 6)
    data = Data(root=str(root), cache=str(tmp_path / "cache"))
    dataset = CocoDataset(READERS["coco"](data, "val"), eval_transform("tiny", long_side=128))
    folder = RunFolder(tmp_path / "point")
    folder.lock()
    nothing = DetectionTable(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 6, dtype=torch.float64))
    for _ in range(2):
        write_samples(folder, dataset, nothing, NAMES)
    assert [path.name for path in folder.samples()] == ["1.jpg", "2.jpg", "4.jpg", "5.jpg"]
    assert {path.parent for path in folder.samples()} == {folder.path / "samples"}
    assert [Image.open(path).size for path in folder.samples()] == [(64, 48)] * 4
    assert len(list((folder.path / "samples").iterdir())) == 4
