"""Reading COCO's layout: what is kept, what is left out, and that anything broken is an error of one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from fovea_detr.data.coco import CocoDataset, Draw, check_images
from fovea_detr.data.flaws import refuse
from fovea_detr.data.readers import read_coco
from fovea_detr.data.transforms import Transform, eval_transform, train_transform
from fovea_detr.errors import DataError
from tests.data.builders import annotation_path, box, edit, image_path, truncate, write_awkward, write_coco

Change = Callable[[dict[str, Any]], object]


def set_box(*xywh: float) -> Change:
    return lambda content: content["annotations"][1].update(bbox=list(xywh))


def set_field(table: str, **fields: object) -> Change:
    return lambda content: content[table][1].update(fields)


def without(table: str, key: str) -> Change:
    return lambda content: content[table][1].pop(key)


BROKEN_CONTENT: dict[str, tuple[Change, str]] = {
    "no images table": (lambda content: content.pop("images"), "images"),
    "no annotations table": (lambda content: content.pop("annotations"), "annotations"),
    "no categories": (lambda content: content.update(categories=[]), "categories"),
    "unknown category": (set_field("annotations", category_id=5), "annotation 2 (image 000002.jpg, box"),
    "unknown image": (set_field("annotations", image_id=77), "annotation 2 (image id 77"),
    "category is a word": (set_field("annotations", category_id="cat"), "category cat"),
    "category numbered anew": (set_field("categories", id=-1), "objects of a category that is not listed"),
    "box of three numbers": (set_box(1, 2, 3), "box [1, 2, 3]"),
    "no box": (without("annotations", "bbox"), "without a box of four numbers"),
    "nan": (set_box(float("nan"), 1, 5, 5), "annotation 2 (image 000002.jpg, box [nan, 1, 5, 5]"),
    "infinity": (set_box(0, 1, float("inf"), 5), "annotation 2 (image 000002.jpg"),
    "zero width": (set_box(1, 1, 0, 5), "annotation 2 (image 000002.jpg, box [1, 1, 0, 5]"),
    "negative height": (set_box(1, 9, 5, -5), "annotation 2 (image 000002.jpg"),
    "outside on the left": (set_box(-1.5, 1, 5, 5), "annotation 2 (image 000002.jpg"),
    "outside on the right": (set_box(20, 1, 14, 5), "annotation 2 (image 000002.jpg"),
    "wholly in the margin": (set_box(32, 1, 0.5, 5), "annotation 2 (image 000002.jpg"),
    "image id used twice": (
        set_field("images", id=1),
        "images that share an id: 2 left out (000001.jpg (id 1), 000002.jpg (id 1))",
    ),
    "image without name": (without("images", "file_name"), "without a file_name"),
    "image without height": (set_field("images", height=0), "000002.jpg"),
    "image listed but missing": (set_field("images", file_name="gone.jpg"), "gone.jpg"),
    "image in a missing folder": (set_field("images", file_name="far/gone.jpg"), "far/gone.jpg"),
}

BROKEN_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no root": (lambda root: root.rename(root.with_name("elsewhere")), "coco: no such folder"),
    "no images folder": (lambda root: (root / "train2017").rename(root / "train"), "train2017"),
    "no annotations folder": (
        lambda root: (root / "annotations").rename(root / "labels"),
        "annotations: no such folder",
    ),
    "no annotation file": (lambda root: annotation_path(root).unlink(), "instances_train2017.json"),
    "not json": (lambda root: annotation_path(root).write_text('{"images": [\n'), "instances_train2017.json: not JSON"),
    "not utf-8": (
        lambda root: annotation_path(root).write_bytes(b"\xff\xfe\xfa"),
        "instances_train2017.json: not JSON",
    ),
    "a list": (lambda root: annotation_path(root).write_text("[1]"), "instances_train2017.json"),
    "empty image": (lambda root: image_path(root, 2).write_bytes(b""), "files that are empty, or broken links: 1 ("),
}


def refusal_of(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        refuse([read_coco(root, "train").flaws], 0.01)
    return str(caught.value)


@pytest.mark.parametrize("case", [*BROKEN_CONTENT, *BROKEN_FILES])
def test_everything_broken_is_refused_in_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    root = write_coco(tmp_path / "coco")
    if case in BROKEN_CONTENT:
        change, culprit = BROKEN_CONTENT[case]
        edit(root, change)
    else:
        breakage, culprit = BROKEN_FILES[case]
        breakage(root)
    message = refusal_of(root)
    assert culprit in message
    assert "\n" not in message


def test_few_flawed_objects_are_left_out_of_training_and_evaluation(tmp_path: Path) -> None:
    annotations = [box(1 + i % 2, 1, (4.0, 4.0, 8.0, 8.0)) for i in range(100)]
    annotations[5]["bbox"][2] = 0.0
    root = write_coco(tmp_path, annotations=annotations)
    split = read_coco(root, "train")
    refuse([split.flaws], 0.01)
    (flaw,) = split.flaws.found
    assert (
        str(flaw) == "empty boxes: 1 left out (annotation 6 (image 000002.jpg, box [4.0, 4.0, 0.0, 8.0], category 1))"
    )
    assert len(split.labels) == len(split.ground_truth()["annotations"]) == 99
    edit(root, lambda content: content["annotations"].pop())
    assert "1 of 99 objects are flawed, more than data.max_flawed=0.01 allows: empty boxes: 1 " in refusal_of(root)


def test_a_pixel_outside_is_rounding_and_clamped(tmp_path: Path) -> None:
    root = write_coco(tmp_path, annotations=[box(1, 1, (-1.0, -0.5, 50.0, 33.0))])
    split = read_coco(root, "train")
    assert split.flaws.found == []
    assert split.boxes_xyxy.tolist() == [[0, 0, 48, 32]]


def test_an_awkward_data_set(tmp_path: Path) -> None:
    dataset = CocoDataset(
        read_coco(write_awkward(tmp_path), "train"), eval_transform("coco", short_side=60, max_side=100)
    )
    split = dataset.annotations
    assert split.categories == {3: "three", 7: "seven", 90: "ninety"}
    assert split.num_classes == 91
    examples = [dataset[index] for index in range(4)]
    assert [e.target.labels.tolist() for e in examples] == [[3, 90], [], [7], [90]]  # the crowd is left out
    assert examples[1].target.labels.shape == (0,)
    assert examples[1].target.boxes_cxcywh.shape == (0, 4)
    assert [tuple(e.image.shape) for e in examples] == [(3, 60, 80), (3, 80, 60), (3, 15, 100), (3, 100, 15)]
    assert [e.original_size_hw for e in examples] == [(48, 64), (64, 48), (300, 2000), (2000, 300)]
    torch.testing.assert_close(examples[2].target.boxes_cxcywh, torch.tensor([[0.975, 175 / 300, 0.05, 0.5]]))
    torch.testing.assert_close(
        examples[0].target.boxes_cxcywh, torch.tensor([[25 / 64, 22 / 48, 30 / 64, 20 / 48], [0.5, 0.5, 1.0, 1.0]])
    )


def test_an_annotation_file_without_annotations(tmp_path: Path) -> None:
    dataset = CocoDataset(read_coco(write_coco(tmp_path, annotations=[]), "val"), eval_transform("tiny"))
    assert [len(dataset[index].target) for index in range(2)] == [0, 0]


@pytest.mark.parametrize(
    "transform", [train_transform("tiny", long_side=32), train_transform("coco", short_sides=(24,))]
)
def test_in_memory_makes_no_difference(tmp_path: Path, transform: Transform) -> None:
    root = write_awkward(tmp_path)
    from_disk = CocoDataset(read_coco(root, "train"), transform)
    in_memory = CocoDataset(read_coco(root, "train"), transform, in_memory=True)
    image_path(root, 1).unlink()
    for draw in (Draw(0, 1, 5), Draw(0, 2, 5), Draw(0, 1, 5), Draw(2, 3, 5)):
        again = in_memory[draw]
        assert again.image.dtype == torch.uint8
        if draw.index != 0:
            torch.testing.assert_close(again.image, from_disk[draw].image, rtol=0, atol=0)
    torch.testing.assert_close(in_memory[0].image, in_memory[Draw(0, 0, 0)].image, rtol=0, atol=0)


def test_ground_truth_fills_in_defaults_and_leaves_the_file_alone(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    edit(root, lambda content: content["annotations"][0].update(id=0))
    edit(root, lambda content: [a.pop(key) for a in content["annotations"] for key in ("area", "iscrowd")])
    before = annotation_path(root).read_bytes()
    truth = read_coco(root, "train").ground_truth()
    assert [(a["id"], a["iscrowd"], a["area"]) for a in truth["annotations"]] == [(1, 0, 24 * 16), (2, 0, 16 * 24)]
    assert truth["info"] == {}
    assert annotation_path(root).read_bytes() == before
    coco: Any = COCO()
    coco.dataset = truth
    coco.createIndex()
    assert coco.loadRes([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}]).getAnnIds() == [1]


def test_the_fingerprint_is_of_the_content_not_the_place(tmp_path: Path) -> None:
    first, second = (read_coco(write_coco(tmp_path / name), "train").fingerprint for name in "ab")
    edit(tmp_path / "b", lambda content: content["annotations"][0].update(bbox=[1, 1, 2, 2]))
    assert first == second != read_coco(tmp_path / "b", "train").fingerprint
    assert len(first) == 16


@pytest.mark.parametrize("damage", [truncate, lambda path: path.write_text("no image"), lambda path: path.unlink()])
def test_an_unreadable_image_is_named(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    dataset = CocoDataset(read_coco(write_coco(tmp_path), "train"), eval_transform("tiny"))
    damage(image_path(tmp_path, 2))
    for read in (lambda: dataset[1], lambda: check_images(dataset)):
        with pytest.raises(DataError, match=r"000002\.jpg") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_an_image_of_another_size_than_annotated_is_named(tmp_path: Path) -> None:
    dataset = CocoDataset(read_coco(write_coco(tmp_path), "train"), eval_transform("tiny"))
    check_images(dataset)
    Image.new("RGB", (40, 30)).save(image_path(tmp_path, 2))
    with pytest.raises(DataError, match=r"000002\.jpg: 40 x 30 pixels on disk, but 32 x 48"):
        check_images(dataset)


def test_images_may_lie_in_folders_below(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    (root / "train2017" / "below").mkdir()
    image_path(root, 2).rename(root / "train2017" / "below" / "second.jpg")
    edit(root, lambda content: content["images"][1].update(file_name="below/second.jpg"))
    assert CocoDataset(read_coco(root, "train"), eval_transform("tiny"))[1].image_id == 2
    assert json.loads(annotation_path(root).read_text())["images"][1]["id"] == 2
