"""Where data sets and exports of annotation tools keep their files: each is written here, found, and read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from fovea_detr import build
from fovea_detr.compose import load_config
from fovea_detr.config.schema import Data, SplitFiles, is_infrastructure
from fovea_detr.data.annotations import CocoSplit
from fovea_detr.data.readers import READERS, describe_layout, fingerprints
from fovea_detr.errors import ConfigError, DataError
from fovea_detr.experiment import run
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.paths import with_absolute_paths
from fovea_detr.runs.settings import settings
from fovea_detr.study.launch import data_folders, refuse_missing_data
from fovea_detr.study.manifest import Point

WIDTH, HEIGHT = 40, 30


def bbox(number: int) -> list[int]:
    """Another one for each image, so that a box tells which image it is of."""
    return [number % 20, number % 10, 10 + number % 7, 12]


def write_export(json_path: Path, folder: Path, numbers: Sequence[int], file_name: str = "image{}.png") -> None:
    """An annotation file with one object in each image, and the images. file_name: as the export writes it."""
    json_path.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.new("RGB", (WIDTH, HEIGHT), (number % 256, 0, 0)).save(folder / f"image{number}.png")
    names = {number: file_name.format(number) for number in numbers}
    content = {
        "images": [{"id": n, "file_name": name, "width": WIDTH, "height": HEIGHT} for n, name in names.items()],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": bbox(n)} for n in numbers],
        "categories": [{"id": 1, "name": "thing"}],
    }
    json_path.write_text(json.dumps(content))


def write_roboflow(root: Path) -> None:
    for split, numbers in (("train", range(1, 5)), ("valid", range(5, 8)), ("test", range(8, 9))):
        write_export(root / split / "_annotations.coco.json", root / split, numbers)


def write_cvat(root: Path) -> None:
    write_export(root / "annotations" / "instances_default.json", root / "images", range(1, 21))


def write_cvat_subset(root: Path) -> None:
    write_export(root / "annotations" / "instances_default.json", root / "images" / "default", range(1, 21))


def write_label_studio(root: Path, file_name: str = "images\\image{}.png", name: str = "result.json") -> None:
    write_export(root / name, root / "images", range(1, 21), file_name)


def write_uploads(root: Path) -> None:
    write_label_studio(root, "../../label-studio/data/media/upload/1/image{}.png")


def write_renamed(root: Path) -> None:
    write_label_studio(root, "images/image{}.png", "project-3.json")


def write_coco_2017(root: Path) -> None:
    for split, numbers in (("train", range(1, 5)), ("val", range(5, 8))):
        write_export(root / "annotations" / f"instances_{split}2017.json", root / f"{split}2017", numbers)


def write_cvat_subsets(root: Path) -> None:
    for subset, numbers in (("Train", range(1, 5)), ("Validation", range(5, 8))):
        write_export(root / "annotations" / f"instances_{subset}.json", root / "images" / subset, numbers)


def write_plain_names(root: Path) -> None:
    for split, numbers in (("train", range(1, 5)), ("val", range(5, 8))):
        write_export(root / "annotations" / f"instances_{split}.json", root / "images", numbers)


TWO_FILES: dict[str, Callable[[Path], None]] = {
    "COCO 2017": write_coco_2017,
    "Roboflow": write_roboflow,
    "CVAT, two subsets": write_cvat_subsets,
    "instances of train and val": write_plain_names,
}
ONE_FILE: dict[str, Callable[[Path], None]] = {
    "CVAT": write_cvat,
    "CVAT, a subset": write_cvat_subset,
    "Label Studio": write_label_studio,
    "Label Studio, uploads": write_uploads,
    "one json": write_renamed,
}


def numbers_of(split: CocoSplit) -> set[int]:
    """The images of a split, after a look at the pixels and the boxes of each."""
    found = set()
    dataset = build.CocoDataset(split, build.eval_transform("tiny"))
    for index, image_id in enumerate(split.image_ids.tolist()):
        sample = dataset.sample(index)
        assert sample.image[0, 0, 0] == image_id
        x, y, width, height = bbox(image_id)
        assert sample.boxes_xyxy.tolist() == [[x, y, x + width, y + height]]
        found.add(image_id)
    return found


def read_both(data: Data) -> tuple[set[int], set[int]]:
    splits = {name: READERS["coco"](data, name) for name in ("train", "val")}
    assert fingerprints(data) == {name: split.fingerprint for name, split in splits.items()}
    return numbers_of(splits["train"]), numbers_of(splits["val"])


def refusal(data: Data) -> str:
    with pytest.raises(DataError) as caught:
        [READERS["coco"](data, name) for name in ("train", "val")]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- detected --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", TWO_FILES)
def test_a_layout_with_two_files(tmp_path: Path, layout: str) -> None:
    TWO_FILES[layout](tmp_path)
    data = Data(root=str(tmp_path))
    assert read_both(data) == ({1, 2, 3, 4}, {5, 6, 7})
    assert describe_layout(data).startswith(f"train: {layout}, {tmp_path}/")
    assert "; val: " in describe_layout(data)


@pytest.mark.parametrize("layout", ONE_FILE)
def test_a_layout_with_one_file(tmp_path: Path, layout: str) -> None:
    ONE_FILE[layout](tmp_path)
    data = Data(root=str(tmp_path), val_fraction=0.3)
    train, val = read_both(data)
    assert train | val == set(range(1, 21))
    assert not train & val
    assert train
    assert val
    expected = (
        rf"train: {layout.partition(',')[0]}, .*\(train part, data\.val_fraction=0\.3, data\.split_seed=0\); val: "
    )
    assert re.match(expected, describe_layout(data))


@pytest.mark.parametrize("layout", ONE_FILE)
def test_one_file_without_a_fraction_is_refused(tmp_path: Path, layout: str) -> None:
    ONE_FILE[layout](tmp_path)
    message = refusal(Data(root=str(tmp_path)))
    assert "has one annotation file" in message
    assert "set data.val_fraction=0.1" in message


def test_a_folder_without_a_known_layout_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    message = refusal(Data(root=str(tmp_path)))
    for wanted in ("instances_train2017.json", "train/_annotations.coco.json", "instances_default.json", "result.json"):
        assert wanted in message
    assert "data.train.annotations=" in message
    write_label_studio(tmp_path, name="a.json")
    (tmp_path / "b.json").write_text("{}")
    assert "a single *.json" in refusal(Data(root=str(tmp_path)))


def test_two_layouts_in_one_folder_are_refused_with_both(tmp_path: Path) -> None:
    write_roboflow(tmp_path)
    write_cvat(tmp_path)
    message = refusal(Data(root=str(tmp_path)))
    assert "2 layouts, Roboflow (train/_annotations.coco.json and train/, " in message
    assert "CVAT (annotations/instances_default.json and images/default/ or images/)" in message
    assert fingerprints(Data(root=str(tmp_path))) == {}


def test_a_missing_half_of_a_layout_is_named(tmp_path: Path) -> None:
    write_roboflow(tmp_path)
    (tmp_path / "valid").rename(tmp_path / "elsewhere")
    message = refusal(Data(root=str(tmp_path)))
    assert message.startswith(f"{tmp_path / 'valid'}: no such folder; ")
    assert "data.val_fraction=0.1" in message
    train, val = read_both(Data(root=str(tmp_path), val_fraction=0.5))
    assert train | val == {1, 2, 3, 4}


def test_a_fraction_beside_a_validation_set_is_refused(tmp_path: Path) -> None:
    write_roboflow(tmp_path)
    message = refusal(Data(root=str(tmp_path), val_fraction=0.1))
    assert "has a validation set, valid/_annotations.coco.json" in message


# ---- named -----------------------------------------------------------------------------------------------------------


def named(annotations: Path | str, images: Path | str) -> SplitFiles:
    return SplitFiles(str(annotations), str(images))


def test_any_files_by_name(tmp_path: Path) -> None:
    write_export(tmp_path / "a" / "first.json", tmp_path / "photos", range(1, 4))
    write_export(tmp_path / "second.json", tmp_path / "b" / "c", range(4, 6))
    val = named(tmp_path / "second.json", tmp_path / "b" / "c")
    absolute = Data(train=named(tmp_path / "a" / "first.json", tmp_path / "photos"), val=val)
    relative = Data(root=str(tmp_path), train=named("a/first.json", "photos"), val=val)
    assert read_both(absolute) == read_both(relative) == ({1, 2, 3}, {4, 5})
    assert describe_layout(relative) == describe_layout(absolute)
    assert describe_layout(relative).startswith(
        f"train: named files, {tmp_path}/a/first.json, images in {tmp_path}/pho"
    )


def test_a_named_split_and_a_found_one(tmp_path: Path) -> None:
    write_coco_2017(tmp_path)
    write_export(tmp_path / "mine.json", tmp_path / "mine", range(30, 33))
    assert read_both(Data(root=str(tmp_path), val=named("mine.json", "mine"))) == ({1, 2, 3, 4}, {30, 31, 32})


def test_a_named_file_divided(tmp_path: Path) -> None:
    write_coco_2017(tmp_path)
    write_export(tmp_path / "mine.json", tmp_path / "mine", range(30, 50))
    train, val = read_both(Data(root=str(tmp_path), train=named("mine.json", "mine"), val_fraction=0.3))
    assert train | val == set(range(30, 50))


def test_a_named_file_that_is_missing_names_its_key(tmp_path: Path) -> None:
    write_export(tmp_path / "mine.json", tmp_path / "mine", range(3))
    message = refusal(Data(root=str(tmp_path), train=named("yours.json", "mine")))
    assert message == (f"{tmp_path}/yours.json: no such file; correct data.train.annotations or data.train.images")


def test_paths_are_no_part_of_a_run_and_a_division_is() -> None:
    assert is_infrastructure("data.train.annotations")
    assert is_infrastructure("data.val.images")
    base = settings(load_config(["data.root=/a"]))
    files = ["data.train.annotations=/a/b.json", "data.train.images=/a"]
    assert settings(load_config([*files, "data.val.annotations=c.json", "data.val.images=d"])) == base
    assert settings(load_config([*files, "data.val_fraction=0.1"])) != base
    assert base["data.val_fraction"] == base["data.split_seed"] == "0"


def test_jobs_get_paths_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = ["data.train.annotations=a/b.json", "data.train.images=/c", "data.val_fraction=0.1"]
    in_root = with_absolute_paths(load_config([*files, "data.root=sub"]))
    assert in_root.data.train == SplitFiles(f"{tmp_path}/sub/a/b.json", "/c")
    without_root = with_absolute_paths(load_config(files))
    assert without_root.data.train == SplitFiles(f"{tmp_path}/a/b.json", "/c")
    assert without_root.data.val == SplitFiles()
    points = [Point("a", without_root, {}, [])]
    refuse_missing_data(points)
    assert Path("/c") in data_folders(points)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("data.train.annotations=a.json", "data.train.annotations=a.json needs data.train.images=PATH as well"),
        ("data.val.images=a", "data.val.images=a needs data.val.annotations=PATH as well"),
        ("data.val_fraction=1", "data.val_fraction=1.0 must be in 0..1"),
        ("data.val_fraction=-0.1", "data.val_fraction=-0.1 must be in 0..1"),
        ("data.val_fraction=nan", "data.val_fraction=nan must be in 0..1"),
        ("data.split_seed=-1", "data.split_seed=-1 must not be negative"),
        ("data.val_fraction=0.1 data.val.annotations=a data.val.images=b", "remove one of the two"),
        ("data=shapes +data.val_fraction=0.1", "data.val_fraction=0.1: data.name=shapes generates its images"),
    ],
)
def test_keys_that_do_not_fit_together(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_config(overrides.split())
    assert "\n" not in str(caught.value)


# ---- divided ---------------------------------------------------------------------------------------------------------


def divided(root: Path, seed: int = 0, fraction: float = 0.25) -> tuple[set[str], set[str]]:
    data = Data(root=str(root), val_fraction=fraction, split_seed=seed)
    train, val = (set(READERS["coco"](data, name).file_names) for name in ("train", "val"))
    return train, val


def test_more_images_and_other_ids_move_no_image(tmp_path: Path) -> None:
    write_export(tmp_path / "a" / "result.json", tmp_path / "a" / "images", range(1, 101))
    write_export(tmp_path / "b" / "result.json", tmp_path / "b" / "images", range(1, 201))
    content = json.loads((tmp_path / "b" / "result.json").read_text())
    for entry in content["images"]:
        entry["id"] += 1000
    for entry in content["annotations"]:
        entry["image_id"] += 1000
    content["images"].reverse()
    (tmp_path / "b" / "result.json").write_text(json.dumps(content))
    (train, val), (more_train, more_val) = divided(tmp_path / "a"), divided(tmp_path / "b")
    assert train < more_train
    assert val < more_val
    assert 15 <= len(val) <= 35  # a quarter of 100 in expectation
    assert divided(tmp_path / "a") == (train, val)
    assert divided(tmp_path / "a", seed=1) != (train, val)
    assert divided(tmp_path / "a", fraction=0.5)[1] > val


def test_objects_and_crowds_follow_their_image_whatever_the_type_of_its_id(tmp_path: Path) -> None:
    write_export(tmp_path / "result.json", tmp_path / "images", range(1, 31))
    content = json.loads((tmp_path / "result.json").read_text())
    content["annotations"] += [
        {"image_id": float(n), "category_id": 1, "bbox": bbox(n), "iscrowd": n % 2} for n in range(1, 31)
    ]
    (tmp_path / "result.json").write_text(json.dumps(content))
    data = Data(root=str(tmp_path), val_fraction=0.3)
    for name in ("train", "val"):
        split = READERS["coco"](data, name)
        truth = split.ground_truth()
        assert sorted({a["image_id"] for a in truth["annotations"]}) == sorted(split.image_ids.tolist())
        assert len(truth["annotations"]) == 2 * len(split.image_ids) == 2 * len(truth["images"])


def test_a_side_without_images_is_refused(tmp_path: Path) -> None:
    write_export(tmp_path / "result.json", tmp_path / "images", range(1, 4))
    message = refusal(Data(root=str(tmp_path), val_fraction=0.0001))
    assert "data.val_fraction=0.0001 of 3 images leaves none for val" in message


def test_the_fingerprint_is_of_file_fraction_and_seed(tmp_path: Path) -> None:
    write_export(tmp_path / "result.json", tmp_path / "images", range(1, 21))
    root = str(tmp_path)
    found = [
        fingerprints(Data(root=root, val_fraction=fraction, split_seed=seed))
        for fraction, seed in ((0.3, 0), (0.3, 1), (0.4, 0))
    ]
    assert len({fingerprint for each in found for fingerprint in each.values()}) == 6
    assert all(len(fingerprint) == 16 for each in found for fingerprint in each.values())


@pytest.mark.parametrize("content", ["[1]", "{}", '{"images": 3, "annotations": []}', '{"images": [1, {"id": []}]}'])
def test_content_of_another_kind_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    write_export(tmp_path / "result.json", tmp_path / "images", range(1, 21))
    (tmp_path / "result.json").write_text(content)
    assert "result.json" in refusal(Data(root=str(tmp_path), val_fraction=0.3))


# ---- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["Roboflow", "CVAT", "Label Studio, uploads"])
def test_a_run_on_an_export(tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It trains; the same command finds it done; another division is another run."""
    root = tmp_path / "data"
    (TWO_FILES | ONE_FILE)[layout](root)
    words = [
        "experiment=tiny",
        "data=coco",
        "data.recipe=tiny",
        "data.workers=0",
        "schedule.epochs=1",
        f"runs={tmp_path}",
    ]
    words += ["schedule.batch_size=1", "evaluation.timed_images=1", f"data.root={root}", "device=cpu"]
    words += ["data.val_fraction=0.2"] if layout in ONE_FILE else []
    run(load_config(words), "point")
    folder = RunFolder(tmp_path / "tiny" / "point")
    assert folder.result() is not None
    capsys.readouterr()
    run(load_config(words), "point")
    assert "done already" in capsys.readouterr().out
    stored = folder.path / "split.json"
    assert stored.is_file() == (layout in ONE_FILE)
    if layout in ONE_FILE:
        sides = json.loads(stored.read_text())
        assert sorted(id_ for side in sides.values() for id_ in side.values()) == list(range(1, 21))
