"""COCO's numbers from either backend against pycocotools called by hand, through files, on varied made-up data."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fovea_detr.config.checks import CHOICES
from fovea_detr.config.schema import Config
from fovea_detr.data.annotations import CocoSplit
from fovea_detr.data.coco_json import load_coco
from fovea_detr.evaluation import coco
from fovea_detr.evaluation.coco import BACKENDS, DetectionTable, GroundTruth, coco_metrics
from fovea_detr.runs import folder
from fovea_detr.runs.folder import METRICS, Metric
from tests.predictions import TWELVE

Results = list[dict[str, Any]]
CATEGORIES = {1: "one", 17: "seventeen", 44: "forty-four", 90: "ninety"}


def table_of(results: Results) -> DetectionTable:
    image_ids = torch.tensor([one["image_id"] for one in results], dtype=torch.int64)
    rows = [[*one["bbox"], one["score"], one["category_id"]] for one in results]
    return DetectionTable(image_ids, torch.tensor(rows, dtype=torch.float64).reshape(-1, 6))


def metrics_of(truth: dict[str, Any], results: Results, backend: str = "hotcoco") -> dict[str, Any]:
    return coco_metrics(GroundTruth(truth, backend), table_of(results))


def by_pycocotools(truth: dict[str, Any], results: Results, folder: Path, categories: list[int] | None = None) -> Any:
    """Through files, as one does it at a prompt. loadRes knows no empty list of results."""
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    index = COCO(str(folder / "truth.json"))
    found: Any = COCO()
    if results:
        found = index.loadRes(str(folder / "results.json"))
    else:
        found.dataset = {**truth, "annotations": []}
        found.createIndex()
    evaluation = COCOeval(index, found, "bbox")
    if categories is not None:
        evaluation.params.catIds = categories
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


# ---- made-up splits --------------------------------------------------------------------------------------------------


def made_truth(seed: int, *, crowd: bool = False, image_ids: tuple[int, ...] = (7, 1, 3, 581_929, 20, 4)) -> Any:
    """Images in no order, the last two without objects; boxes of all sizes; categories with gaps in their ids.

    There is nothing of the category "ninety". Every fifth area is not its box's (masks are smaller), and some lie on
    a limit between small, medium and large.
    """
    rng = np.random.default_rng(seed)
    annotations: Results = []
    for image in image_ids[:-2]:
        for _ in range(int(rng.integers(1, 9))):
            x, y, w, h = (float(side) for side in (*rng.uniform(0, 200, 2), *(8 + 240 * rng.uniform(0, 1, 2) ** 3)))
            k = len(annotations)
            area = float(rng.choice([32.0**2, 96.0**2, 0.4 * w * h])) if k % 5 == 0 else w * h
            one = {"image_id": image, "category_id": int(rng.choice([1, 17, 44])), "bbox": [x, y, w, h]}
            annotations.append({"id": k + 1, **one, "area": area, "iscrowd": int(crowd and k % 3 == 0)})
    return {
        "images": [{"id": image, "width": 500, "height": 500} for image in image_ids],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES.items()],
    }


def made_results(truth: dict[str, Any], seed: int, *, times: int = 3, decimals: int = 9) -> Results:
    """Every object found `times` times with some noise, as float32 numbers; some of other categories or of none.

    Nothing is found on the fourth image; on the last but one, which has no object, something is.
    decimals: of the scores; few make ties, inside an image and between images.
    """
    rng = np.random.default_rng(seed)
    ids = [image["id"] for image in truth["images"]]
    seeds = [a for a in truth["annotations"] if a["image_id"] != ids[3]] or [{"bbox": [9.0] * 4}]
    seeds = [*seeds, {"bbox": [10.0, 10.0, 40.0, 40.0], "image_id": ids[-2], "category_id": 90}] * times
    results = []
    for one in seeds:
        noise = rng.normal(0, 0.15 * float(np.mean(one["bbox"][2:])), 4) * rng.integers(0, 2)
        box = np.array(one["bbox"]) + noise
        box[2:] = box[2:].clip(min=0)
        category = one.get("category_id", 1) if rng.random() < 0.8 else int(rng.choice([1, 17, 44, 90, 2]))
        score = float(np.float32(rng.random().__round__(decimals)))
        found = {"image_id": one.get("image_id", ids[0]), "category_id": category}
        results.append({**found, "bbox": np.float32(box).tolist(), "score": score})
    return results


def no_objects(seed: int) -> tuple[dict[str, Any], Results]:
    truth = made_truth(seed)
    results = made_results(truth, seed)
    return {**truth, "annotations": []}, results


def crowded_image(seed: int) -> tuple[dict[str, Any], Results]:
    """More than 100 detections of one category on an image, many of them tied: the limit cuts through a tie."""
    truth = made_truth(seed, crowd=True)
    results = made_results(truth, seed, times=40, decimals=1)
    return truth, [{**one, "category_id": 17, "image_id": 7} for one in results] + results


def huge_ids(seed: int) -> tuple[dict[str, Any], Results]:
    """Next to each other beyond float64's integers."""
    truth = made_truth(seed, image_ids=tuple(2**53 + i for i in (5, 1, 2, 3, 6, 4)))
    return truth, made_results(truth, seed)


def simply(**options: Any) -> Any:
    def make(seed: int) -> tuple[dict[str, Any], Results]:
        truth = made_truth(seed, crowd=options.get("crowd", False))
        return truth, made_results(
            truth, seed + 100, decimals=options.get("decimals", 9)
        ) if "none" not in options else []

    return make


MADE = {
    "plain": simply(),
    "crowds": simply(crowd=True),
    "ties": simply(crowd=True, decimals=1),
    "nothing found": simply(none=True),
    "nothing to find": no_objects,
    "over 100 an image": crowded_image,
    "huge image ids": huge_ids,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("seed", range(4))
def test_the_numbers_are_pycocotools(kind: str, seed: int, backend: str, tmp_path: Path) -> None:
    """The twelve and the AP of every category, -1 included; from pycocotools itself bit for bit."""
    truth, results = MADE[kind](seed)
    expected = by_pycocotools(truth, results, tmp_path)
    metrics = metrics_of(truth, results, backend)
    tolerance = 0 if backend == "pycocotools" else 1e-12
    assert list(metrics) == [*METRICS, "AP_by_category"]
    assert [metrics[name] for name in TWELVE] == pytest.approx(expected.stats.tolist(), rel=0, abs=tolerance)
    assert list(metrics["AP_by_category"]) == list(CATEGORIES.values())
    for category, name in CATEGORIES.items():
        alone = by_pycocotools(truth, results, tmp_path, [category])
        assert metrics["AP_by_category"][name] == pytest.approx(float(alone.stats[0]), rel=0, abs=1e-12), name


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("seed", range(4))
def test_hotcocos_arrays_are_pycocotools_bit_for_bit(kind: str, seed: int, tmp_path: Path) -> None:
    truth, results = MADE[kind](seed)
    expected, found = by_pycocotools(truth, results, tmp_path), GroundTruth(truth).evaluate(table_of(results))
    for name in ("precision", "recall", "scores"):
        assert np.array_equal(found.eval[name], expected.eval[name]), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", MADE)
def test_the_twelve_are_the_backends_own_summary_bit_for_bit(kind: str, backend: str) -> None:
    truth, results = MADE[kind](0)
    evaluation = GroundTruth(truth, backend).evaluate(table_of(results))
    evaluation.summarize()
    metrics = metrics_of(truth, results, backend)
    assert [metrics[name] for name in TWELVE] == evaluation.stats[:12].tolist()


NEW = (
    Metric("AP95", "precision", iou=0.95),
    Metric("AP50_75_90", "precision", iou=(0.5, 0.75, 0.9)),
    Metric("AR50_large_10", "recall", 0.5, "large", 10),
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", NEW, ids=lambda metric: metric.name)
def test_a_new_metric_is_one_line(
    metric: Metric, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco, "COCO_METRICS", (*folder.COCO_METRICS, metric))
    truth, results = MADE["crowds"](0)
    expected = mean_by_loop(by_pycocotools(truth, results, tmp_path), metric)
    assert 0.01 < expected < 1
    assert metrics_of(truth, results, backend)[metric.name] == pytest.approx(expected, rel=0, abs=1e-12)


def mean_by_loop(evaluation: Any, metric: Metric) -> float:
    """Over categories, and over recalls for a precision, number by number."""
    params, values = evaluation.params, evaluation.eval[metric.table]
    wanted = metric.iou if isinstance(metric.iou, tuple) else (metric.iou,)
    places = [i for i, iou in enumerate(params.iouThrs) if any(abs(iou - one) < 1e-9 for one in wanted)]
    a, m = params.areaRngLbl.index(metric.area), params.maxDets.index(metric.detections)
    known = []
    for k in range(len(params.catIds)):
        for i in places:
            cells = values[i, :, k, a, m] if metric.table == "precision" else [values[i, k, a, m]]
            known += [float(cell) for cell in cells if cell > -1]
    return sum(known) / len(known)


def test_a_threshold_that_cocoeval_does_not_have_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "COCO_METRICS", (Metric("AP52", "precision", iou=0.52),))
    with pytest.raises(AssertionError, match=r"AP52: COCOeval has no IoU of 0\.52"):
        metrics_of(*MADE["plain"](0))


def test_the_made_up_splits_have_what_they_promise() -> None:
    _, results = crowded_image(0)
    of_one = [one["score"] for one in results if (one["image_id"], one["category_id"]) == (7, 17)]
    assert sorted(of_one)[-100] == sorted(of_one)[-101]
    for kind in ("plain", "crowds", "ties"):
        metrics = metrics_of(*MADE[kind](0))
        assert all(0.05 < metrics[name] <= 1 for name in TWELVE), kind
        assert metrics["AP50"] < 1, kind
    assert set(metrics_of(*no_objects(0))["AP_by_category"].values()) == {-1.0}


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_evaluation_leaves_no_trace(backend: str) -> None:
    """Both backends write into what they are given; the next epoch's detections meet the same ground truth."""
    truth, results = MADE["crowds"](0)
    content, other = copy.deepcopy(truth), made_results(truth, 5)
    index = GroundTruth(truth, backend)
    first = coco_metrics(index, table_of(results))
    assert coco_metrics(index, table_of(other)) == metrics_of(truth, other, backend) != first
    assert coco_metrics(index, table_of(results)) == first
    assert truth == content


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_evaluation_says_nothing(
    backend: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """One backend prints, the other logs; Hydra shows logs."""
    with caplog.at_level(logging.INFO):
        truth, results = MADE["plain"](0)
        metrics_of(truth, results, backend)
    assert (*capfd.readouterr(), caplog.text) == ("", "", "")


def test_polygons_are_not_kept() -> None:
    truth = made_truth(0)
    for one in truth["annotations"]:
        one["segmentation"] = [[0.0] * 1000]
    (kept, *_) = GroundTruth(truth).index.dataset["annotations"]
    assert set(kept) == {"id", "image_id", "category_id", "bbox", "area", "iscrowd"}


def test_whole_numbers_in_the_file(tmp_path: Path) -> None:
    truth = made_truth(0)
    for one in truth["annotations"]:
        one["bbox"] = [int(side) for side in one["bbox"]]
    results = made_results(truth, 0)
    expected = by_pycocotools(truth, results, tmp_path).stats.tolist()
    assert [metrics_of(truth, results)[name] for name in TWELVE] == pytest.approx(expected, rel=0, abs=1e-12)


def test_results_are_those_of_a_results_file() -> None:
    rows = torch.tensor([[1.0, 2.0, 10.0, 20.0, 0.5, 7.0]], dtype=torch.float64)
    expected = {"image_id": 42, "category_id": 7, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.5}
    assert DetectionTable(torch.tensor([42]), rows).results() == [expected]
    results = made_results(made_truth(0), 0)
    assert table_of(results).results() == results


def test_an_image_of_another_split_is_refused() -> None:
    with pytest.raises(ValueError, match="another split"):
        metrics_of(made_truth(0), [{"image_id": 2, "category_id": 1, "bbox": [0.0] * 4, "score": 0.5}])


def test_every_backend_can_be_chosen() -> None:
    assert CHOICES["evaluation.backend"] == tuple(BACKENDS)
    assert Config().evaluation.backend in BACKENDS


def test_names_are_in_the_order_of_the_printed_summary(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    truth = made_truth(0)
    results = made_results(truth, 0)
    metrics = metrics_of(truth, results)
    assert capsys.readouterr().out == ""
    by_pycocotools(truth, results, tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if "@[" in line]
    patterns = {
        "AP": ("Precision", "0.50:0.95", "   all", "100"),
        "AP50": ("Precision", "0.50  ", "   all", "100"),
        "AP75": ("Precision", "0.75  ", "   all", "100"),
        "AP_small": ("Precision", "0.50:0.95", " small", "100"),
        "AP_medium": ("Precision", "0.50:0.95", "medium", "100"),
        "AP_large": ("Precision", "0.50:0.95", " large", "100"),
        "AR_1": ("Recall", "0.50:0.95", "   all", "  1 "),
        "AR_10": ("Recall", "0.50:0.95", "   all", " 10 "),
        "AR_100": ("Recall", "0.50:0.95", "   all", "100"),
        "AR_small": ("Recall", "0.50:0.95", " small", "100"),
        "AR_medium": ("Recall", "0.50:0.95", "medium", "100"),
        "AR_large": ("Recall", "0.50:0.95", " large", "100"),
    }
    assert tuple(patterns) == TWELVE
    for line, (name, words) in zip(lines, patterns.items(), strict=True):
        assert all(word in line for word in words), (name, line)
        assert float(line.rsplit("=", 1)[1]) == pytest.approx(metrics[name], abs=6e-4)


def test_no_detections_are_zero_where_there_is_something_to_find() -> None:
    truth = made_truth(0)
    metrics = metrics_of(truth, [])
    assert [metrics[name] for name in METRICS] == [0.0] * len(METRICS)
    assert metrics["AP_by_category"] == {"one": 0.0, "seventeen": 0.0, "forty-four": 0.0, "ninety": -1.0}


def test_nothing_to_find_is_undefined() -> None:
    truth = {**made_truth(0), "annotations": []}
    results = [{"image_id": 1, "category_id": 1, "bbox": [0.0, 0.0, 9.0, 9.0], "score": 0.5}]
    for found in (results, []):
        metrics = metrics_of(truth, found)
        assert [metrics[name] for name in METRICS] == [-1.0] * len(METRICS)


def test_perfect_detections_are_one() -> None:
    truth = made_truth(0)
    kept = ("image_id", "category_id", "bbox")
    results = [{**{key: a[key] for key in kept}, "score": 0.9} for a in truth["annotations"]]
    metrics = metrics_of(truth, results)
    assert metrics["AP"] == metrics["AP50"] == metrics["AR_100"] == pytest.approx(1.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_split_is_evaluated_as_pycocotools_evaluates_its_file(seed: int, backend: str, tmp_path: Path) -> None:
    """Read and checked for training, it gives the numbers of the file itself bit for bit: boxes, areas and crowds."""
    truth = made_truth(seed, crowd=True)
    for image in truth["images"]:
        image["file_name"] = f"{image['id']}.png"
        Image.new("L", (500, 500)).save(tmp_path / image["file_name"])
    (tmp_path / "file.json").write_text(json.dumps(truth))
    split = CocoSplit.of(tmp_path / "file.json", tmp_path, lambda: load_coco(tmp_path / "file.json"))
    assert not split.flaws.are_fatal
    results = made_results(truth, seed + 100)
    read = GroundTruth(split.ground_truth(), backend)
    assert read.index.dataset == GroundTruth(truth, backend).index.dataset
    expected = by_pycocotools(truth, results, tmp_path).stats.tolist()
    tolerance = 0 if backend == "pycocotools" else 1e-12
    metrics = coco_metrics(read, table_of(results))
    assert [metrics[name] for name in TWELVE] == pytest.approx(expected, rel=0, abs=tolerance)
