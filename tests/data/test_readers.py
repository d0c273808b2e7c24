"""The table of readers: one for each file of conf/data/, and what a reader of another layout costs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fovea_detr import build
from fovea_detr.compose import load_config
from fovea_detr.config.schema import CONF_DIR, Data
from fovea_detr.data.annotations import CocoSplit
from fovea_detr.data.flaws import refuse
from fovea_detr.data.readers import READERS, SplitName
from fovea_detr.errors import DataError
from tests.data.builders import annotation_path, write_coco


def test_there_is_a_reader_for_every_file_in_conf() -> None:
    assert set(READERS) == {path.stem for path in (CONF_DIR / "data").glob("*.yaml")}


def test_a_file_in_conf_without_a_reader_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(READERS, "coco")
    with pytest.raises(DataError, match=r"^data\.name=coco has no reader: add it to READERS[^\n]*$"):
        build.build_data(load_config(["data.root=/anywhere"]))


def test_an_unset_root_is_refused_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"^data\.root is not set: [^\n]*data=shapes$"):
        READERS["coco"](Data(), "val")


def test_evaluation_needs_only_its_own_split(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data", splits=("val",))
    (tmp_path / "weights.pt").touch()
    training = ["data=coco", "data.recipe=tiny", f"data.root={root}"]
    train, val = build.build_data(load_config([*training, "mode=eval", f"weights={tmp_path / 'weights.pt'}"]))
    assert (train, len(val)) == (None, 2)
    with pytest.raises(DataError, match="train2017"):
        build.build_data(load_config(training))


# ---- another layout: a folder of images, and a text file with a line for each box: "cat.png 1 x y width height" ------


def content_of_lines(path: Path) -> dict[str, Any]:
    images, annotations = {}, []
    for line in path.read_text().splitlines():
        name, category, *box = line.split()
        if name not in images:
            with Image.open(path.parent / name) as image:
                images[name] = {"id": len(images), "file_name": name, "width": image.width, "height": image.height}
        bbox = [float(side) for side in box]
        annotations.append({"image_id": images[name]["id"], "category_id": int(category), "bbox": bbox})
    return {"images": list(images.values()), "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}


def read_lines(data: Data, split: SplitName) -> CocoSplit:
    path = Path(str(data.root)) / f"{split}.txt"
    return CocoSplit.of(path, path.parent, partial(content_of_lines, path))


def write_lines(root: Path, *lines: str) -> None:
    Image.new("RGB", (40, 30)).save(root / "cat.png")
    for split in ("train", "val"):
        (root / f"{split}.txt").write_text("\n".join(lines))


def test_another_layout_is_a_function_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path, "cat.png 1 5 5 20 10", "cat.png 1 0 0 40 30")
    monkeypatch.setitem(READERS, "coco", read_lines)
    train, val = build.build_data(load_config(["data.recipe=tiny", f"data.root={tmp_path}"]))
    assert train is not None
    assert [len(split[0].target) for split in (train, val)] == [2, 2]
    truth = val.annotations.ground_truth()["annotations"]
    assert [(one["id"], one["area"], one["iscrowd"]) for one in truth] == [(1, 200, 0), (2, 1200, 0)]
    first = read_lines(Data(root=str(tmp_path)), "val").fingerprint
    assert first == val.annotations.fingerprint
    write_lines(tmp_path, "cat.png 1 5 5 20 11")
    assert first != read_lines(Data(root=str(tmp_path)), "val").fingerprint


def test_a_broken_box_of_another_layout_is_one_line(tmp_path: Path) -> None:
    write_lines(tmp_path, "cat.png 1 5 5 0 10")
    with pytest.raises(DataError, match=r"train\.txt: 1 of 1 objects .*annotation without id \(image cat\.png[^\n]*$"):
        refuse([read_lines(Data(root=str(tmp_path)), "train").flaws], 0.01)


def test_the_fingerprint_of_cocos_layout_is_that_of_the_file(tmp_path: Path) -> None:
    """Run folders hold it: another formula would make every older run one on other data."""
    root = write_coco(tmp_path)
    annotation_path(root).write_text(FIXED)
    assert READERS["coco"](Data(root=str(root)), "train").fingerprint == "308a1723aaa4ef06"


FIXED = (
    '{"images": [{"id": 1, "file_name": "000001.jpg", "width": 48, "height": 32}], "annotations": [], '
    '"categories": [{"id": 1}]}'
)
