"""Cuts of real exports, each with its outcome: trained and evaluated on the same objects, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fovea_detr.data.annotations import CocoSplit
from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.flaws import refuse
from fovea_detr.data.readers import read_coco
from fovea_detr.data.transforms import eval_transform
from fovea_detr.errors import DataError
from tests.data.builders import annotation_path

CASES = Path(__file__).parent / "cases"
BLOOD = {0: "Platelets", 1: "RBC", 2: "WBC"}
# case -> objects, categories, the flaws that are listed
READ: dict[str, tuple[int, dict[int, str], list[str]]] = {
    "base": (12, BLOOD, []),
    "string_ids": (12, BLOOD, []),
    "iscrowd_string_0": (12, BLOOD, []),
    "category_without_name": (12, {0: "0", 1: "1", 2: "2"}, []),
    "double_slash": (12, BLOOD, []),
    "duplicate_category_id": (12, BLOOD, ["category ids used twice (the first name counts)"]),
    "duplicate_category_names": (12, dict.fromkeys(BLOOD, "stitch_line"), []),
    "fewer_categories_val": (1, {0: "Platelets"}, []),
    "roboflow_2026_string_bbox": (1, {0: "stitch_line", 1: "stitch_line"}, []),
    "roboflow_2026_string_bbox_exif6": (1, {0: "stitch_line", 1: "stitch_line"}, []),
    "gray16": (1, {1: "cell"}, []),
    "one_row": (1, {1: "line"}, []),
}


def make(case: str, root: Path) -> Path:
    """The case as both splits of a data set, with made-up images."""
    content = json.loads((CASES / f"{case}.json").read_text())
    for split in ("train", "val"):
        annotation_path(root, split).parent.mkdir(parents=True, exist_ok=True)
        annotation_path(root, split).write_text(json.dumps(content))
        for image in content["images"]:
            path = root / f"{split}2017" / image["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, image["width"], image["height"])
    return root


def write_image(path: Path, width: int, height: int) -> None:
    """phone.jpg is stored lying, with EXIF orientation 6; gray16.png has 16 bits."""
    if path.name == "phone.jpg":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (height, width), (120, 120, 120)).save(path, exif=exif)
    elif path.name == "gray16.png":
        Image.fromarray(np.linspace(0, 65535, width * height).reshape(height, width).astype(np.uint16)).save(path)
    else:
        Image.new("L", (width, height), 120).save(path)


def read(root: Path, max_flawed: float = 0.01) -> CocoSplit:
    split = read_coco(root, "train")
    refuse([split.flaws], max_flawed)
    return split


def assert_consistent(split: CocoSplit) -> list[dict[str, Any]]:
    """Training and evaluation know the same objects."""
    truth = split.ground_truth()["annotations"]
    assert len(truth) == len(split.labels) + split.objects.is_crowd.sum()
    assert {one["category_id"] for one in truth} <= set(split.categories)
    assert {one["image_id"] for one in truth} <= set(split.image_ids.tolist())
    return truth


@pytest.mark.parametrize("case", READ)
def test_a_real_file_is_read(case: str, tmp_path: Path) -> None:
    objects, categories, flaws = READ[case]
    split = read(make(case, tmp_path))
    assert len(split.labels) == len(assert_consistent(split)) == objects
    assert split.categories == categories
    assert [flaw.kind for flaw in split.flaws.found] == flaws
    dataset = CocoDataset(split, eval_transform("tiny"))
    assert sum(len(dataset[i].target) for i in range(len(dataset))) == objects


def test_strings_are_the_numbers_they_spell(tmp_path: Path) -> None:
    (one,) = read(make("roboflow_2026_string_bbox", tmp_path)).ground_truth()["annotations"]
    assert one["bbox"] == [182.0, 218.0, 37.4281, 225.6804]


def test_16_bit_grey_keeps_its_greys(tmp_path: Path) -> None:
    dataset = CocoDataset(read(make("gray16", tmp_path)), eval_transform("tiny"))
    assert len(dataset.sample(0).image.unique()) == 256


def test_one_empty_box_is_left_out_where_so_many_are_allowed(tmp_path: Path) -> None:
    root = make("bccd_zero_box", tmp_path)
    with pytest.raises(
        DataError, match=r"^[^\n]*1 of 14 objects are flawed[^\n]*annotation 886[^\n]*max_flawed=0\.072$"
    ):
        read(root)
    split = read(root, 0.072)
    assert len(split.labels) == len(assert_consistent(split)) == 13


def test_a_box_a_little_outside_is_clipped_for_training_and_whole_for_evaluation(tmp_path: Path) -> None:
    split = read(make("taco_official_one_image", tmp_path))
    assert len(split.labels) == 2
    assert split.boxes_xyxy[0].tolist() == pytest.approx([171.03125, 0, 689.3875, 412.117], abs=1e-3)
    assert split.ground_truth()["annotations"][0]["bbox"] == [171.03125, -1.3166667, 518.35625, 413.4333367]
    (flaw,) = split.flaws.found
    assert (flaw.kind, flaw.count) == ("boxes partly outside their image (clipped)", 1)
    assert split.flaws.share == 0
