"""Pictures in, detections out: in Python and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import fovea_detr
from fovea_detr.build import build_model
from fovea_detr.compose import load_config
from fovea_detr.data.loader import collate_images
from fovea_detr.data.pixels import decode
from fovea_detr.data.samples import Sample
from fovea_detr.data.transforms import eval_transform
from fovea_detr.errors import DataError, UserError
from fovea_detr.evaluation.detections import postprocess
from fovea_detr.evaluation.drawing import blended
from fovea_detr.predict.__main__ import main, names_for
from fovea_detr.predict.capture import capture
from fovea_detr.predict.fovea import fovea_heat, overlay
from fovea_detr.predict.pictures import as_pixels, find_pictures
from fovea_detr.predict.predictor import Predictor
from fovea_detr.runs.stored import config_text

NAMES = {1: "cat", 3: "dog"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, with the configuration and the class names that a run stores."""
    config = load_config(["experiment=tiny", "data.num_classes=4"])
    torch.manual_seed(0)
    model = build_model(config)
    torch.nn.init.normal_(model.class_head.weight)
    torch.nn.init.zeros_(model.class_head.bias)
    path = tmp_path_factory.mktemp("trained") / "checkpoint.pt"
    torch.save({"model": model.state_dict(), "config": config_text(config), "categories": NAMES}, path)
    return path


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Predictor:
    return fovea_detr.load_run(checkpoint, device="cpu")


def picture(path: Path, size_wh: tuple[int, int] = (90, 60), seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size_wh[1], size_wh[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_detections_equal_those_of_the_evaluation(predictor: Predictor, tmp_path: Path) -> None:
    """The slow twin: decode, resize, one batch of one, postprocess, then drop what is no class or below the score."""
    path = picture(tmp_path / "a.png")
    image = decode(path)
    config = predictor.trained.config
    resized = eval_transform("tiny", long_side=config.data.long_side).prepare(
        Sample(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    )
    with torch.no_grad():
        predictions = predictor.model(collate_images([resized.image], [(60, 90)]))
    (all_found,) = postprocess(predictions, torch.tensor([[60, 90]]))
    (found,) = predictor.predict(path, threshold=0.4)
    kept = [
        i
        for i, (s, c) in enumerate(zip(all_found.scores, all_found.labels, strict=True))
        if s >= 0.4 and int(c) in NAMES
    ]
    assert 0 < len(found) == len(kept) < len(all_found.scores)
    torch.testing.assert_close(found.scores, all_found.scores[kept])
    torch.testing.assert_close(found.boxes_xyxy, all_found.boxes_xyxy[kept])
    assert found.names == [NAMES[int(label)] for label in all_found.labels[kept]]
    scores = predictions.logits[-1, 0].sigmoid()
    for query, label, score in zip(found.queries, found.labels, found.scores, strict=True):
        assert scores[query, label] == score


def test_every_form_of_a_picture_gives_the_same(predictor: Predictor, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    image = Image.open(path)
    array = np.asarray(image)
    forms = [path, str(path), image, array, torch.from_numpy(array.copy()).permute(2, 0, 1)]
    one_by_one = [predictor.predict(form, threshold=0.0)[0] for form in forms]
    for found in [*one_by_one, *predictor.predict(forms, threshold=0.0)]:
        torch.testing.assert_close(found.scores, one_by_one[0].scores)
        torch.testing.assert_close(found.boxes_xyxy, one_by_one[0].boxes_xyxy)
    assert len(predictor.predict(np.stack([array, array]))) == 2
    assert len(predictor.predict(forms, batch_size=2)) == len(forms)


def test_grey_and_turned_pictures_are_read_as_training_reads_them(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert as_pixels(grey).shape == (3, 3, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (90, 60)).save(tmp_path / "turned.jpg", exif=exif)
    assert as_pixels(tmp_path / "turned.jpg").shape == (3, 90, 60)
    assert as_pixels(Image.open(tmp_path / "turned.jpg")).shape == (3, 90, 60)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), r"shape \[4, 4, 3\] and type float32: a picture is"),
        (np.zeros((3, 4, 5), np.uint8), r"shape \[3, 4, 5\]"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \[0, 4, 3\]"),
        (torch.zeros(3, 4, 4), r"a tensor of shape \[3, 4, 4\] and type float32"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"a picture is \[3, height, width\]"),
        ({"image": 1}, "not a dict"),
        ("nowhere.jpg", r"nowhere\.jpg: cannot be read as an image"),
    ],
)
def test_anything_else_is_one_line(given: object, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        as_pixels(given)
    assert "\n" not in str(caught.value)


def test_files_folders_and_patterns_are_found_once(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    paths = [picture(tmp_path / name) for name in ("b.png", "a.png", "sub/c.PNG")]
    (tmp_path / "notes.txt").write_text("no picture")
    assert find_pictures([str(tmp_path)]) == sorted(paths)
    assert find_pictures([str(tmp_path / "*.png"), str(paths[0])]) == [paths[1], paths[0]]
    for wanted, words in (
        (str(tmp_path / "none"), "no such file or folder"),
        (str(tmp_path / "*.gif"), "no file matches"),
    ):
        with pytest.raises(DataError, match=words):
            find_pictures([wanted])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no image file in this folder"):
        find_pictures([str(tmp_path / "empty")])


def test_pictures_of_one_name_keep_apart() -> None:
    assert names_for([Path("x/a.jpg"), Path("y/a.png"), Path("a.jpg"), Path("b.jpg")]) == ["a", "a-2", "a-3", "b"]


def test_the_command_writes_pictures_results_and_foveas(checkpoint: Path, tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{name}.png", seed=i) for i, name in enumerate("ab")]
    to = tmp_path / "out"
    assert (
        main([str(checkpoint), str(tmp_path / "*.png"), "--to", str(to), "--threshold", "0.4", "--queries", "0,3"]) == 0
    )
    results = json.loads((to / "predictions.json").read_text())
    assert {one["file_name"] for one in results} == {str(path) for path in paths}
    assert {one["category_id"] for one in results} <= {*NAMES}
    assert all(one["name"] == NAMES[one["category_id"]] for one in results)
    assert {path.name for path in to.glob("*.jpg")} == {
        f"{name}{end}.jpg" for name in "ab" for end in ("", "-fovea-0", "-fovea-3")
    }
    assert Image.open(to / "a.jpg").size == (90, 60)
    images = [{"id": number, "file_name": path.name} for number, path in enumerate(paths, 1)]
    content = {"images": images, "annotations": [], "categories": [{"id": i} for i in NAMES]}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    truth = COCO(tmp_path / "truth.json")
    assert len(truth.loadRes(str(to / "predictions.json")).getAnnIds()) == len(results)


def test_a_broken_picture_is_named_and_the_others_are_done(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("<html>")
    assert main([str(checkpoint), str(tmp_path), "--to", str(tmp_path / "out")]) == 1
    assert (tmp_path / "out" / "good.jpg").is_file()
    assert "bad.png: cannot be read as an image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threshold", "2"], "--threshold 2.0: a score is in 0..1"),
        (["--queries", "99999"], "--queries 99999: the model has queries 0 to"),
        (["--set", "smooth=16"], "was trained with"),
        (["--to", "/dev/null/out"], "--to: the folder /dev/null/out cannot be made (Not a directory)"),
    ],
)
def test_mistakes_are_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    path = picture(tmp_path / "a.png")
    with pytest.raises(SystemExit) as left:
        main([str(checkpoint), str(path), "--to", str(tmp_path / "out"), *arguments])
    assert left.value.code == 2
    assert words in capsys.readouterr().err


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.yaml in it"):
        fovea_detr.load_run(tmp_path)


def test_the_heat_map_is_the_mean_prior_at_the_pixels(predictor: Predictor) -> None:
    pixels = torch.zeros(3, 64, 128, dtype=torch.uint8)
    captured = capture(predictor.model, predictor.batch([pixels]))
    heat = fovea_heat(captured, 5, (64, 128))
    assert heat is not None
    layer = captured.layers[-1]
    assert layer.log_prior_at is not None
    for row, column in ((0, 0), (63, 127), (20, 77)):
        at = (
            torch.tensor([(side + 0.5) * of / pixels_of / captured.stride])
            for side, of, pixels_of in ((column, captured.size_hw[1], 128), (row, captured.size_hw[0], 64))
        )
        x, y = at
        mean = np.mean([layer.log_prior_at(head, 5, x, y).exp().item() for head in range(len(layer.has_prior))])
        assert heat[row, column] == pytest.approx(mean, rel=1e-5)
    lit = overlay(pixels, np.ones((64, 128)))
    assert lit[:, 0, 0].tolist() == [191, 165, 0]


def test_class_names_of_another_program_are_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint)
    torch.save({**content, "categories": {"cat": "1"}}, tmp_path / "other.pt")
    assert fovea_detr.load_run(tmp_path / "other.pt", device="cpu").name(1) == "class 1"


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a model with masks."""
    config = load_config(["experiment=tiny", "data.num_classes=4", "model.masks=true"])
    torch.manual_seed(0)
    model = build_model(config)
    torch.nn.init.normal_(model.class_head.weight)
    path = tmp_path_factory.mktemp("masks") / "checkpoint.pt"
    torch.save({"model": model.state_dict(), "config": config_text(config), "categories": NAMES}, path)
    return path


def test_masks_are_found_drawn_and_written(with_masks: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    predictor = fovea_detr.load_run(with_masks, device="cpu")
    (found,) = predictor.predict(path, threshold=0.05)
    with torch.no_grad():
        batch = predictor.batch([path])
        out = predictor.model(batch)
    (everything,) = postprocess(out, batch.original_sizes_hw, masks=True, processed_hw=batch.sizes_hw)
    assert found.masks is not None
    assert everything.masks is not None
    assert len(found) > 0
    of_query = dict(zip(everything.queries.tolist(), everything.masks, strict=True))
    assert all(torch.equal(m, of_query[q]) for q, m in zip(found.queries.tolist(), found.masks, strict=True))
    assert main([str(with_masks), str(path), "--to", str(tmp_path / "to"), "--threshold", "0.05"]) == 0
    written = json.loads((tmp_path / "to" / "predictions.json").read_text())
    areas = [int(coco_mask.decode(one["segmentation"]).sum()) for one in written]
    assert areas == found.masks.sum((1, 2)).tolist()


def test_a_mask_is_blended_below_the_ones_before_it() -> None:
    pixels = torch.full((3, 2, 3), 100, dtype=torch.uint8)
    masks = torch.tensor([[[1, 0, 0], [0, 0, 0]], [[1, 1, 0], [0, 0, 0]]]).bool()
    found = blended(pixels, masks, [0, 1])
    assert found[:, 0, 0].tolist() == [(100 + side) // 2 for side in (0xE6, 0x19, 0x4B)]
    assert found[:, 0, 1].tolist() == [(100 + side) // 2 for side in (0x3C, 0xB4, 0x4B)]
    assert (found[:, 1] == 100).all()
