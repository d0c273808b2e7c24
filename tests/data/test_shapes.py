"""The generated data set: its properties, and that it is written once, whole, whoever asks."""

from __future__ import annotations

import itertools
import json
import multiprocessing
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.flaws import refuse
from fovea_detr.data.readers import read_coco
from fovea_detr.data.shapes import drawing, generate
from fovea_detr.data.transforms import eval_transform
from fovea_detr.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate.generate(tmp_path_factory.mktemp("cache"), train_images=40, val_images=20, seed=3)


def content_of(folder: Path, split: str) -> dict:
    return json.loads((folder / "annotations" / f"instances_{split}2017.json").read_text())


def test_layout_sizes_and_categories(folder: Path) -> None:
    content = content_of(folder, "train")
    assert len(content["images"]) == len(list((folder / "train2017").iterdir())) == 40
    assert len(content_of(folder, "val")["images"]) == 20
    assert {i["id"]: i["name"] for i in content["categories"]} == dict(enumerate(drawing.CATEGORIES, 1))
    sizes = {(image["width"], image["height"]) for image in content["images"]}
    assert sizes == {(256, 256), (256, 192), (192, 256)}
    for image in content["images"][:5]:
        with Image.open(folder / "train2017" / image["file_name"]) as on_disk:
            assert (on_disk.format, *on_disk.size) == ("JPEG", image["width"], image["height"])


def test_objects_are_two_to_six_inside_and_overlap_little(folder: Path) -> None:
    content = content_of(folder, "train")
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    assert set(Counter(a["image_id"] for a in objects).values()) == {2, 3, 4, 5, 6}
    for annotation in objects:
        x, y, w, h = annotation["bbox"]
        width, height = sizes[annotation["image_id"]]
        assert x >= 0
        assert y >= 0
        assert x + w <= width + 0.01
        assert y + h <= height + 0.01
    for a, b in itertools.combinations(objects, 2):
        if a["image_id"] == b["image_id"]:
            first, second = (np.array([*o["bbox"][:2], *np.add(o["bbox"][:2], o["bbox"][2:])]) for o in (a, b))
            assert drawing._overlap(first, second) <= 0.25 + 1e-3


def test_crowds_and_polygons_are_what_pycocotools_reads(folder: Path) -> None:
    content = content_of(folder, "train")
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    crowds = [a for a in content["annotations"] if a["iscrowd"]]
    assert [a["image_id"] for a in crowds] == [1, 21]  # 5 % of the images
    for annotation in content["annotations"]:
        encoded = coco_mask.frPyObjects(annotation["segmentation"], *sizes[annotation["image_id"]])
        area = coco_mask.area(encoded if annotation["iscrowd"] else coco_mask.merge(encoded))
        assert area == pytest.approx(annotation["area"], rel=0 if annotation["iscrowd"] else 0.06, abs=40)
    for annotation in crowds:
        encoded = coco_mask.frPyObjects(annotation["segmentation"], *sizes[annotation["image_id"]])
        assert coco_mask.toBbox(encoded).tolist() == annotation["bbox"]


def test_a_mask_that_touches_its_corners() -> None:
    mask = np.array([[True, False], [False, True]])
    assert drawing._crowd_annotation(1, mask)["segmentation"] == {"size": [2, 2], "counts": [0, 1, 2, 1]}


def test_an_image_is_a_function_of_seed_split_and_index(folder: Path, tmp_path: Path) -> None:
    fewer = generate.generate(tmp_path, train_images=3, val_images=1, seed=3)
    name = "000000000003.jpg"
    assert (fewer / "train2017" / name).read_bytes() == (folder / "train2017" / name).read_bytes()
    image, objects, _ = drawing.draw_image(3, "train", 2)
    others = [drawing.draw_image(*key)[0] for key in ((4, "train", 2), (3, "val", 2), (3, "train", 3))]
    assert all(np.asarray(image).tobytes() != np.asarray(other).tobytes() for other in others)
    written = [a for a in content_of(folder, "train")["annotations"] if a["image_id"] == 3]
    assert [a["bbox"] for a in written] == [o["bbox"] for o in objects]


def test_two_processes_at_once_write_it_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=generate.generate, args=(tmp_path, 30, 5)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert capfd.readouterr().out.count("generating") == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["shapes-v1-train30-val5-seed0"]
    assert len(CocoDataset(read_coco(generate.generate(tmp_path, 30, 5), "train"), eval_transform("tiny"))) == 30


def test_who_loses_a_race_without_locks_uses_the_winners_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_split(root: Path, split: str, count: int, seed: int) -> None:
        if not (winner / "marker").exists():
            winner.mkdir()
            (winner / "marker").touch()
        write_split(root, split, count, seed)

    winner, write_split = tmp_path / "shapes-v1-train2-val1-seed0", generate._write_split
    monkeypatch.setattr(generate, "_write_split", slow_split)
    assert generate.generate(tmp_path, 2, 1) == winner
    assert [path.name for path in winner.iterdir()] == ["marker"]
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [winner]


def test_an_interrupted_generation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate.generate(tmp_path, 2, 1)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    monkeypatch.undo()
    assert generate.generate(tmp_path, 2, 1).is_dir()


def test_the_data_set_reads_it_without_its_crowds(folder: Path) -> None:
    dataset = CocoDataset(read_coco(folder, "val"), eval_transform("tiny"), in_memory=True)
    objects = [a for a in content_of(folder, "val")["annotations"] if not a["iscrowd"]]
    assert sum(len(dataset[index].target) for index in range(len(dataset))) == len(objects)
    assert dataset.annotations.num_classes == 7


def test_a_lost_image_is_a_data_error(tmp_path: Path) -> None:
    root = generate.generate(tmp_path, 2, 1, seed=3)
    (root / "train2017" / "000000000002.jpg").unlink()
    with pytest.raises(DataError, match=r"000000000002\.jpg"):
        refuse([read_coco(root, "train").flaws], 0.01)
