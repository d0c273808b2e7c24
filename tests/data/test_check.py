"""`python -m fovea_detr.data check ROOT`: the report, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fovea_detr.config.schema import Data
from fovea_detr.data.__main__ import main
from fovea_detr.data.readers import READERS
from tests.data.builders import box, edit, image_path, write_coco


def check(root: Path, *options: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["check", str(root), *options])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_clean_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(write_coco(tmp_path), "--full") == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in out] == ["train", "val"]
    assert "2 images, 2 objects and 0 crowds of 2 categories; 0 of 2 objects are flawed" in out[0]


def test_flaws_are_listed_by_kind_with_three_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes = [box(1, 1, (4, 4, 9, 9)) for _ in range(90)] + [box(1, 1, (4, 4, 0, 9)) for _ in range(10)]
    root = write_coco(tmp_path, annotations=[*boxes, box(7, 1, (1, 1, 2, 2)), box(1, 9, (1, 1, 2, 2))])
    assert check(root) == 2
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("12 of 102 objects are flawed")
    kind, example = (
        "objects of an image that is not listed",
        "annotation 101 (image id 7, box [1, 1, 2, 2], category 1)",
    )
    assert out[1] == f"  {kind}: 1 left out ({example})"
    assert out[2].startswith("  objects of a category that is not listed: 1 left out (annotation 102 (image 000001.jpg")
    assert out[3].startswith("  empty boxes: 10 left out (annotation 91 ")
    assert out[3].count("annotation") == 3
    assert out[4] == "train: refused with data.max_flawed=0.01"
    assert check(root, "--max-flawed", "0.2") == 1


def test_what_is_no_data_set_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path / "nowhere") == 2
    assert [line.split(": ")[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["train", "refused"],
        ["val", "refused"],
    ]


def test_full_decodes_the_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_coco(tmp_path)
    whole = image_path(root, 1).read_bytes()
    image_path(root, 1).write_bytes(whole[: len(whole) - 200])
    assert check(root) == 0
    assert check(root, "--full") == 2
    assert "train: refused: 1 of 2 images: " in capsys.readouterr().out


def test_all_unreadable_images_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_coco(tmp_path, [(48, 32)] * 9)
    edit(root, lambda content: [image.update(width=32, height=48) for image in content["images"]])
    assert check(root) == 2
    assert "images of another size than annotated: 9 (" in capsys.readouterr().out
    with Image.open(image_path(root, 1)) as image:
        assert image.size == (48, 32)


def test_categories_that_disagree_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_coco(tmp_path)
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "another"
    path.write_text(json.dumps(content))
    assert check(root) == 2
    assert capsys.readouterr().out.splitlines()[-1].startswith("refused: the categories of the two annotation files")


def test_a_reader_of_ones_own_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "voc", READERS["coco"])
    assert check(write_coco(tmp_path), "--data", "voc") == 0


@pytest.mark.parametrize("number", [None, 2**53 + 1, -(2**60)])
def test_category_ids_that_no_detection_can_hold_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int | None
) -> None:
    root = write_coco(tmp_path)
    for path in (root / "annotations").iterdir():
        content = json.loads(path.read_text())
        for category in content["categories"]:
            category["id"] = number
        path.write_text(json.dumps(content))
    assert check(root) == 2
    assert "categories without an integer id of at most 2**53: 2" in capsys.readouterr().out


def test_areas_of_0_are_those_of_the_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_coco(tmp_path, annotations=[{**box(1, 1, (4, 4, 9, 9)), "area": 0}])
    assert check(root) == 0
    assert "areas that are no usable number (the box's is taken): 1" in capsys.readouterr().out
    assert READERS["coco"](Data(root=str(root)), "val").objects.areas.tolist() == [81]


def test_masks_are_checked_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_coco(tmp_path)
    edit(root, lambda content: [one.update(segmentation=[[1, 2, 3, 4]]) for one in content["annotations"]])
    edit(root, lambda content: [one.update(segmentation=[[1, 2, 9, 2, 5, 9]]) for one in content["annotations"]], "val")
    assert check(root) == 0
    assert check(root, "--masks") == 2
    assert "objects with a polygon of fewer than three points: 2 left out" in capsys.readouterr().out
