"""Detections against loops over queries and classes, and COCO's numbers against pycocotools called by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from fovea_detr import distributed
from fovea_detr.evaluate import (
    METRICS,
    coco_metrics,
    coco_results,
    detect,
    gather_results,
    inference_seconds,
    postprocess,
)
from fovea_detr.types import Batch, Detections, Predictions
from tests import reference
from tests.model.builders import random_batch
from tests.predictions import CLASSES, random_predictions

SIZES_HW = torch.tensor([[480, 640], [333, 500]])
CPU = torch.device("cpu")

# ---- detections ------------------------------------------------------------------------------------------------------

Found = tuple[float, int, list[float]]  # score, label, box


def scaled_box(box_cxcywh: Tensor, size_hw: Tensor) -> list[float]:
    left, top, right, bottom = reference.corners(box_cxcywh.detach()).tolist()
    height, width = size_hw.tolist()
    return [left * width, top * height, right * width, bottom * height]


def by_loop(predictions: Predictions, image: int) -> list[Found]:
    """sigmoid: the Q best of all (query, class) pairs; softmax: each query's best class but the last. Best first."""
    logits, boxes = predictions.logits[-1, image].detach(), predictions.boxes_cxcywh[-1, image]
    found: list[Found] = []
    for query in range(len(logits)):
        box = scaled_box(boxes[query], SIZES_HW[image])
        if predictions.activation == "sigmoid":
            found += [(torch.sigmoid(logits[query, c]).item(), c, box) for c in range(CLASSES)]
        else:
            scores = torch.softmax(logits[query], dim=0).tolist()[:-1]
            found.append((max(scores), scores.index(max(scores)), box))
    return sorted(found, key=lambda one: -one[0])[: len(logits)]


@pytest.mark.parametrize("num_queries", [1, 6])
@pytest.mark.parametrize("loss", ["focal", "softmax"])
def test_detections_by_loop(loss: str, num_queries: int) -> None:
    predictions = random_predictions(2, 2, num_queries, loss=loss)
    detections = postprocess(predictions, SIZES_HW)
    assert len(detections) == 2
    for image, found in enumerate(detections):
        expected = by_loop(predictions, image)
        assert found.scores.tolist() == pytest.approx([score for score, _, _ in expected], rel=1e-6)
        assert found.labels.tolist() == [label for _, label, _ in expected]
        assert np.allclose(found.boxes_xyxy.detach().numpy(), [box for _, _, box in expected], rtol=1e-5, atol=1e-4)


def test_one_query_can_be_found_as_two_classes() -> None:
    predictions = random_predictions(1, 2, 3)
    with torch.no_grad():
        predictions.logits.fill_(-9.0)
        predictions.logits[0, :, 1, :3] = torch.tensor([3.0, 2.0, 1.0])
    for image, found in enumerate(postprocess(predictions, SIZES_HW)):
        assert found.labels.tolist() == [0, 1, 2]
        expected = scaled_box(predictions.boxes_cxcywh[0, image, 1], SIZES_HW[image])
        assert all(box == pytest.approx(expected, rel=1e-5) for box in found.boxes_xyxy.tolist())


def test_a_softmax_query_of_no_object_is_found_with_its_second_best_class() -> None:
    predictions = random_predictions(1, 2, 1, loss="softmax")
    with torch.no_grad():
        predictions.logits[:] = torch.tensor([0.0, 1.0, 0.0, 9.0])
    for found in postprocess(predictions, SIZES_HW):
        assert found.labels.tolist() == [1]
        assert found.scores.item() < 0.01


def test_coco_results_are_corner_and_size() -> None:
    boxes = torch.tensor([[1.0, 2.0, 11.0, 22.0]])
    found = Detections(torch.tensor([0.5]), torch.tensor([7]), boxes)
    expected = {"image_id": 42, "category_id": 7, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.5}
    assert coco_results(42, found) == [expected]
    assert boxes.tolist() == [[1.0, 2.0, 11.0, 22.0]]


class Fixed(nn.Module):
    """A model that predicts the same for every image, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.one = random_predictions(1, 1, 4)

    def forward(self, batch: Batch) -> Predictions:
        self.calls += 1
        logits, boxes = (x.expand(1, len(batch), 4, 4) for x in (self.one.logits, self.one.boxes_cxcywh))
        return Predictions(logits, boxes)


def batches_of(*image_ids: tuple[int, ...]) -> list[tuple[Batch, None]]:
    made = []
    for ids in image_ids:
        batch = random_batch(*[(8, 8)] * len(ids))
        batch.original_sizes_hw = torch.tensor([[10 * i, 20 * i] for i in ids])
        batch.image_ids = ids
        made.append((batch, None))
    return made


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_detect_names_images_and_scales_to_their_size_on_disk(precision: str) -> None:
    model, before = Fixed().train(), []
    results = detect(model, batches_of((3, 1), (2,)), CPU, precision, before_each=lambda: before.append(1))
    assert not model.training
    assert len(before) == 2
    assert [result["image_id"] for result in results] == [3] * 4 + [1] * 4 + [2] * 4
    small, large = results[4]["bbox"], results[0]["bbox"]
    assert large == pytest.approx([3 * side for side in small], rel=1e-6)


def test_what_the_callback_raises_ends_the_evaluation() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    model = Fixed()
    with pytest.raises(KeyboardInterrupt):
        detect(model, batches_of((1,)), CPU, "fp32", before_each=stop)
    assert model.calls == 0


def test_inference_time_is_per_image_after_a_warmup() -> None:
    model = Fixed()
    assert inference_seconds(model, batches_of((1,), (2,), (3,)), CPU, "fp32") > 0
    assert model.calls == 3 + 3
    assert inference_seconds(model, [], CPU, "fp32") == 0


def test_gathered_results_have_the_order_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images dealt out to two ranks; inside an image the order stays: best first."""
    alone = [{"image_id": image, "score": score} for image in (1, 2, 5, 8) for score in (0.9, 0.9, 0.1)]
    parts = [[r for r in alone if r["image_id"] in ids] for ids in ((8, 1), (2, 5))]
    monkeypatch.setattr(distributed, "gather", lambda _value: parts)
    assert gather_results(parts[0]) == alone
    monkeypatch.undo()
    assert gather_results(alone[::-1][:3] + alone[:3]) == alone[:3] + alone[::-1][:3]


# ---- COCO's numbers --------------------------------------------------------------------------------------------------


def ground_truth(crowd: bool) -> dict[str, Any]:
    """6 images, 3 categories with gaps in their ids, boxes of all sizes; the third category has no object."""
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    for image in range(1, 7):
        for _ in range(int(rng.integers(1, 6))):
            x, y, w, h = (float(v) for v in (*rng.uniform(0, 200, 2), *(8 + 240 * rng.uniform(0, 1, 2) ** 3)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(rng.choice([1, 17])),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": int(crowd and len(annotations) % 4 == 0),
                }
            )
    return {
        "images": [{"id": image, "width": 500, "height": 500} for image in range(1, 7)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in ((1, "one"), (17, "seventeen"), (90, "ninety"))],
    }


def results_near(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Every object found with some noise, and as many inventions."""
    rng = np.random.default_rng(1)
    results = []
    for annotation in truth["annotations"] * 2:
        noise = rng.normal(0, 0.15 * float(np.mean(annotation["bbox"][2:])), 4) * rng.integers(0, 2)
        box = [float(side + more) for side, more in zip(annotation["bbox"], noise, strict=True)]
        box[2:] = [max(1.0, side) for side in box[2:]]
        category = annotation["category_id"] if rng.random() < 0.8 else 17
        found = {"image_id": annotation["image_id"], "category_id": category, "bbox": box}
        results.append({**found, "score": float(rng.random())})
    return results


def by_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]], folder: Path) -> COCOeval:
    """Through files, as one does it at a prompt."""
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    coco = COCO(str(folder / "truth.json"))
    evaluation = COCOeval(coco, coco.loadRes(str(folder / "results.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("crowd", [False, True])
def test_the_twelve_numbers_are_pycocotools(crowd: bool, tmp_path: Path) -> None:
    truth = ground_truth(crowd)
    results = results_near(truth)
    untouched = json.dumps(results)
    metrics = coco_metrics(truth, results)
    expected = by_pycocotools(truth, results, tmp_path)
    assert list(metrics) == [*METRICS, "AP_by_category"]
    assert [metrics[name] for name in METRICS] == pytest.approx(expected.stats.tolist(), rel=0, abs=1e-12)
    assert all(0.05 < metrics[name] <= 1 for name in METRICS)
    assert json.dumps(results) == untouched
    assert coco_metrics(truth, results) == metrics


def test_names_are_in_the_order_of_the_printed_summary(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    truth = ground_truth(crowd=False)
    results = results_near(truth)
    metrics = coco_metrics(truth, results)
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
    assert tuple(patterns) == tuple(METRICS)
    for line, (name, words) in zip(lines, patterns.items(), strict=True):
        assert all(word in line for word in words), (name, line)
        assert float(line.rsplit("=", 1)[1]) == pytest.approx(metrics[name], abs=6e-4)


def test_ap_by_category(tmp_path: Path) -> None:
    """By hand: COCOeval on one category at a time; -1 where a category has no object."""
    truth = ground_truth(crowd=True)
    results = results_near(truth)
    found = coco_metrics(truth, results)["AP_by_category"]
    assert list(found) == ["one", "seventeen", "ninety"]
    assert found["ninety"] == -1
    for category, name in ((1, "one"), (17, "seventeen")):
        alone = {**truth, "annotations": [a for a in truth["annotations"] if a["category_id"] == category]}
        evaluation = by_pycocotools(alone, [r for r in results if r["category_id"] == category], tmp_path)
        assert found[name] == pytest.approx(float(evaluation.stats[0]), abs=1e-12)


def test_no_detections_are_zero_where_there_is_something_to_find() -> None:
    truth = ground_truth(crowd=False)
    metrics = coco_metrics(truth, [])
    assert [metrics[name] for name in METRICS] == [0.0] * 12
    assert metrics["AP_by_category"] == {"one": 0.0, "seventeen": 0.0, "ninety": -1.0}


def test_nothing_to_find_is_undefined() -> None:
    truth = {**ground_truth(crowd=False), "annotations": []}
    results = [{"image_id": 1, "category_id": 1, "bbox": [0.0, 0.0, 9.0, 9.0], "score": 0.5}]
    for found in (results, []):
        metrics = coco_metrics(truth, found)
        assert [metrics[name] for name in METRICS] == [-1.0] * 12


def test_perfect_detections_are_one() -> None:
    truth = ground_truth(crowd=False)
    kept = ("image_id", "category_id", "bbox")
    results = [{**{key: a[key] for key in kept}, "score": 0.9} for a in truth["annotations"]]
    metrics = coco_metrics(truth, results)
    assert metrics["AP"] == metrics["AP50"] == metrics["AR_100"] == pytest.approx(1.0)
