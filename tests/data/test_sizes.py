"""`data.short_side`, `data.max_side` and `data.subset`: other sizes of images, and fewer of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fovea_detr.build import build_data
from fovea_detr.compose import load_config
from fovea_detr.data.readers import read_coco
from fovea_detr.data.transforms import CROP_SHORT_SIDES, CROP_SIDES, SHORT_SIDES, published_sides
from fovea_detr.errors import ConfigError
from fovea_detr.runs.identity import differences
from fovea_detr.runs.stored import config_text
from tests.data.builders import box, write_coco


def test_800_leaves_the_published_sizes() -> None:
    sides = published_sides(800)
    assert sides == {"short_sides": SHORT_SIDES, "crop_short_sides": CROP_SHORT_SIDES, "crop_sides": CROP_SIDES}


def test_other_sides_scale_training_and_evaluation(tmp_path: Path) -> None:
    root = write_coco(tmp_path, [(200, 150)] * 4)
    train, val = build_data(load_config([f"data.root={root}", "data.short_side=80", "data.max_side=100"]))
    assert train is not None
    assert max(val.transform.largest_sizes((150, 200))[0]) == 100
    assert published_sides(80)["short_sides"] == tuple(round(side / 10) for side in SHORT_SIDES)
    largest = train.transform.largest_sizes((150, 200))
    assert max(max(size) for size in largest) <= 101
    assert {min(train[i].image.shape[1:]) for i in range(4)} <= set(range(30, 81))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.short_side=0"], r"data\.short_side=0 must be at least 1"),
        (["data.short_side=1600"], r"data\.max_side=1333 is below 1600, the short side"),
        (["experiment=tiny", "data.short_side=400"], r"have no effect with data\.recipe=tiny: set data\.long_side"),
        (["data.subset=0"], r"data\.subset=0 must be at least 1"),
    ],
)
def test_bad_values_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides)


@pytest.mark.parametrize("override", ["data.short_side=400", "data.max_side=1000", "data.subset=8"])
def test_each_makes_another_run(override: str) -> None:
    (line,) = differences(config_text(load_config([])), load_config([override]))
    assert line.startswith(override.partition("=")[0])


def test_a_subset_is_the_first_images_with_their_objects_and_all_classes(tmp_path: Path) -> None:
    boxes = [box(image, category, (2, 2, 10, 10)) for image, category in [(3, 2), (1, 1), (2, 1), (1, 2)]]
    root = write_coco(tmp_path, [(40, 30)] * 4, boxes, categories={1: "cat", 2: "dog", 5: "cow"})
    whole, part = read_coco(root, "train"), read_coco(root, "train").first(2)
    assert part.image_ids.tolist() == whole.image_ids[:2].tolist()
    assert part.starts.tolist() == whole.starts[:3].tolist()
    assert len(part.labels) == len(part.boxes_xyxy) == part.starts[-1] == len(part.objects.rows) == 3
    assert np.array_equal(part.boxes_xyxy, whole.boxes_xyxy[:3])
    assert part.categories == whole.categories
    assert part.fingerprint == whole.fingerprint
    assert len(part.ground_truth()["annotations"]) == 3
    assert whole.first(99).image_ids.tolist() == whole.image_ids.tolist()
    train, val = build_data(load_config([f"data.root={root}", "data.subset=2"]))
    assert train is not None
    assert (len(train), len(val)) == (2, 2)
