"""The matches of an evaluation against pycocotools' cells, number by number; TIDE against its definition; the file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fovea_detr.config.checks import CHOICES
from fovea_detr.errors import RunFolderError
from fovea_detr.evaluation import matches as file
from fovea_detr.evaluation import matching
from fovea_detr.evaluation.coco import DetectionTable, GroundTruth, coco_metrics
from fovea_detr.evaluation.matches import AREAS, ERRORS, Matches, read_matches, write_matches
from fovea_detr.evaluation.matching import matches_of
from fovea_detr.runs.folder import RunFolder
from fovea_detr.training.predictions import MASKS, write_found
from tests.evaluation import test_segm, tide
from tests.evaluation.test_coco import MADE, by_pycocotools, table_of

CASES = [(kind, seed) for kind in MADE for seed in range(3)]


def made_matches(kind: str = "crowds", seed: int = 0, backend: str = "hotcoco") -> Matches:
    truth, results = MADE[kind](seed)
    index, table = GroundTruth(truth, backend), table_of(results)
    return matches_of(index, table, coco_metrics(index, table)["AP"])


# ---- against pycocotools ---------------------------------------------------------------------------------------------


def cells(evaluation: Any, category: int, area: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """pycocotools' cells of a category and an area, and the place of the image of each."""
    params = evaluation.params
    images = len(params.imgIds)
    first = (params.catIds.index(category) * len(AREAS) + area) * images
    for place, cell in enumerate(evaluation.evalImgs[first : first + images]):
        if cell is not None:
            yield place, cell


@pytest.mark.parametrize("at_once", [1, 4, 1000])
@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_every_detection_and_object_is_pycocotools(
    kind: str, seed: int, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "IMAGES_AT_ONCE", at_once)
    truth, results = MADE[kind](seed)
    assert_equal(made_matches(kind, seed), by_pycocotools(truth, results, tmp_path))


@pytest.mark.parametrize("seed", range(3))
def test_every_mask_and_object_is_pycocotools(seed: int, tmp_path: Path) -> None:
    content, table = test_segm.made(seed, times=20)
    write_found(RunFolder(tmp_path), table, None)
    evaluation = test_segm.by_pycocotools(content, tmp_path / MASKS)
    for backend in CHOICES["evaluation.backend"]:
        found = matches_of(GroundTruth(content, backend), table, float(evaluation.stats[0]), kind="segm")
        assert_equal(found, evaluation)


def assert_equal(found: Matches, evaluation: Any) -> None:
    assert found.image_ids.tolist() == evaluation.params.imgIds
    assert found.ious.tolist() == evaluation.params.iouThrs.tolist()
    for k, category in enumerate(found.categories):
        for a in range(len(AREAS)):
            expected, counts = [], {}
            for image, cell in cells(evaluation, category, a):
                counts[image] = sum(not ignored for ignored in cell["gtIgnore"])
                for d, score in enumerate(cell["dtScores"]):
                    hits, ignored = cell["dtMatches"][:, d] > 0, cell["dtIgnore"][:, d].astype(bool)
                    expected.append((-score, image, (hits & ~ignored).tolist(), ignored.tolist()))
            expected.sort(key=lambda one: one[0])
            part = slice(found.starts[k], found.starts[k + 1])
            bits = [[word >> t & 1 == 1 for t in range(10)] for word in found.matched[a, part].tolist()]
            hidden = [[word >> t & 1 == 1 for t in range(10)] for word in found.ignored[a, part].tolist()]
            shown = list(zip(found.images[part].tolist(), bits, hidden, strict=True))
            assert shown == [one[1:] for one in expected], (category, AREAS[a])
            own = found.object_categories == k
            stored = dict(zip(found.object_images[own].tolist(), found.objects[a, own].tolist(), strict=True))
            assert {i: n for i, n in stored.items() if n} == {i: n for i, n in counts.items() if n}


def test_boxes_match_as_without_masks() -> None:
    content, table = test_segm.made(4, times=3)
    alone = matches_of(GroundTruth(content), DetectionTable(table.image_ids, table.rows), 0.0)
    with_masks = matches_of(GroundTruth(content), table, 0.0)
    for name, column in vars(alone).items():
        assert np.array_equal(column, vars(with_masks)[name]), name


def test_the_backend_of_the_run_changes_no_match() -> None:
    first, second = made_matches(), made_matches(backend="pycocotools")
    for name, column in vars(first).items():
        assert np.array_equal(column, vars(second)[name]), name


# ---- TIDE ------------------------------------------------------------------------------------------------------------


def counted(evaluation: Any) -> tuple[tide.Boxes, tide.Boxes, dict[int, int]]:
    """Objects, detections best first, and who found whom, of pycocotools at an IoU of 0.5."""
    objects, found, owner = [], [], {}
    for category in evaluation.params.catIds:
        for _, cell in cells(evaluation, category, 0):
            truth = zip(cell["gtIds"], cell["gtIgnore"], strict=True)
            objects += [evaluation.cocoGt.anns[i] for i, ignored in truth if not ignored]
            for i, own, ignored in zip(cell["dtIds"], cell["dtMatches"][0], cell["dtIgnore"][0], strict=True):
                found += [] if ignored else [evaluation.cocoDt.anns[i]]
                owner |= {} if ignored or not own else {i: own}
    return objects, sorted(found, key=lambda one: -one["score"]), owner


@pytest.mark.parametrize(("kind", "seed"), [(kind, seed) for kind in MADE for seed in range(5)])
def test_the_errors_are_tides_definition(kind: str, seed: int, tmp_path: Path) -> None:
    truth, results = MADE[kind](seed)
    expected = tide.errors(*counted(by_pycocotools(truth, results, tmp_path)))
    assert list(expected) == list(ERRORS)
    assert made_matches(kind, seed).errors_by_type == pytest.approx(expected, rel=0, abs=1e-12)


def test_the_errors_of_masks_are_tides_definition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tide, "iou", lambda a, b: float(test_segm.coco_mask.iou([a], [b], [0])[0, 0]))
    seen = []
    for seed in range(3):
        content, table = test_segm.made(seed, times=3, far=3, other=5)
        write_found(RunFolder(tmp_path), table, None)
        objects, found, owner = counted(test_segm.by_pycocotools(content, tmp_path / MASKS))
        sides = ([{**one, "bbox": one["segmentation"]} for one in side] for side in (objects, found))
        errors = matches_of(GroundTruth(content), table, 0.0, kind="segm").errors_by_type
        assert errors == pytest.approx(tide.errors(next(sides), next(sides), owner), rel=0, abs=1e-12)
        seen.append(list(errors.values()))
    assert (np.max(seen, axis=0) > 0.001).all(), dict(zip(ERRORS, np.max(seen, axis=0), strict=True))


def test_without_crowds_the_errors_of_masks_are_hotcocos() -> None:
    content, table = test_segm.made(1, times=3)
    content = {**content, "annotations": [{**one, "iscrowd": 0} for one in content["annotations"]]}
    gains = GroundTruth(content).evaluate(table, "segm").tide_errors()["delta_ap"]
    errors = matches_of(GroundTruth(content), table, 0.0, kind="segm").errors_by_type
    assert errors == pytest.approx({name: gains[name] for name in ERRORS}, rel=0, abs=1e-12)


@pytest.mark.parametrize("kind", ["plain", "huge image ids", "nothing found"])
def test_without_crowds_the_errors_are_hotcocos(kind: str) -> None:
    truth, results = MADE[kind](1)
    evaluation = GroundTruth(truth).evaluate(table_of(results))
    gains = evaluation.tide_errors()["delta_ap"]
    expected = {name: gains[name] for name in ERRORS}
    assert made_matches(kind, 1).errors_by_type == pytest.approx(expected, rel=0, abs=1e-12)


def test_every_type_of_error_was_made() -> None:
    seen = [made_matches(kind, seed).errors for kind, seed in CASES]
    assert (np.max(seen, axis=0) > 0.005).all(), dict(zip(ERRORS, np.max(seen, axis=0), strict=True))


# ---- the file --------------------------------------------------------------------------------------------------------


def write_result(folder: Path, ap: float) -> None:
    (folder / "result.json").write_text(json.dumps({"last": {"AP": ap}}))


@pytest.mark.parametrize("kind", MADE)
def test_what_is_read_is_what_was_written(kind: str, tmp_path: Path) -> None:
    written = made_matches(kind)
    write_matches(RunFolder(tmp_path), written)
    write_result(tmp_path, written.ap)
    found = read_matches(tmp_path)
    for name, column in vars(written).items():
        assert np.array_equal(column, vars(found)[name]), name
    assert found.categories == {1: "one", 17: "seventeen", 44: "forty-four", 90: "ninety"}


@pytest.mark.parametrize("last", [None, "high", {"AP": "high"}, {"AP": None}])
def test_a_result_whose_ap_is_no_number_has_other_matches(last: object, tmp_path: Path) -> None:
    write_matches(RunFolder(tmp_path), made_matches())
    (tmp_path / "result.json").write_text(json.dumps({"last": last}))
    with pytest.raises(RunFolderError, match=r"result\.json nan: of another run"):
        read_matches(tmp_path)


def test_matches_of_another_run_are_refused(tmp_path: Path) -> None:
    written = made_matches()
    write_matches(RunFolder(tmp_path), written)
    write_result(tmp_path, written.ap + 2e-12)
    with pytest.raises(
        RunFolderError, match=r"matches\.npz: it has AP .*: of another run; make it again with python -m"
    ):
        read_matches(tmp_path)
    write_matches(RunFolder(tmp_path), replace(written, source="checkpoint"))  # evaluated on another device
    assert read_matches(tmp_path).ap == written.ap
    write_result(tmp_path, written.ap + 2e-3)
    with pytest.raises(RunFolderError, match="of another run"):
        read_matches(tmp_path)


def test_matches_that_cannot_be_read_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunFolderError, match="no matches are stored there; make it again with python -m fovea_detr"):
        read_matches(tmp_path)
    write_matches(RunFolder(tmp_path), made_matches())
    content = (tmp_path / "matches.npz").read_bytes()
    for damaged in (b"", b"no archive", content[: len(content) // 2], content[:400] + b"\0\1" + content[402:]):
        (tmp_path / "matches.npz").write_bytes(damaged)
        with pytest.raises(RunFolderError, match=r"matches\.npz: damaged"):
            read_matches(tmp_path)
    monkeypatch.setattr(file, "VERSION", file.VERSION + 1)
    (tmp_path / "matches.npz").write_bytes(content)
    with pytest.raises(RunFolderError, match="format 1, this version reads 2"):
        read_matches(tmp_path)


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    write_matches(RunFolder(tmp_path), made_matches())
    code = f"import sys; from fovea_detr.evaluation.matches import read_matches; read_matches(__import__('pathlib').Path({str(tmp_path)!r})); sys.exit('torch' in sys.modules)"  # noqa: E501
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
