"""Detections of a whole split against its ground truth: COCO's metrics, and AP by category.

Two backends give the same numbers: faster-coco-eval (C++, the default) and pycocotools, the reference that the first is
tested against. Both get the detections through `dataset` and `createIndex`. `loadRes` takes almost twice the time: it
adds a polygon to every detection.

The metrics are computed between two epochs, not in a parallel process. For 5000 images on one core they took 13 s (100
detections per image) and 24 s (300), which is 1 to 5 % of an epoch on COCO (8 to 30 minutes). A parallel process would
need a core of its own, and the newest checkpoint would have to wait for its evaluation.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from functools import partial
from typing import Any

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from torch import Tensor

from fovea_detr.data.annotations import collector_paused
from fovea_detr.runs.folder import COCO_METRICS, Metric

# evaluation.backend -> (the index of a data set, the evaluation)
BACKENDS: dict[str, tuple[Any, Any]] = {
    "faster_coco_eval": (
        faster_coco_eval.COCO,
        partial(faster_coco_eval.COCOeval_faster, print_function=lambda _: None),  # it would log to the run's console
    ),
    "pycocotools": (pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval),
}


@dataclass(frozen=True)
class DetectionTable:
    """The detections of many images, N in all, a row each; within an image, best first. On one device.

    image_ids: [N] int64; not a column of the rows, because float64 cannot represent every integer above 2^53.
    rows: [N, 6] float64: x, y, width, height in pixels of the image on disk, score, category id.
    """

    image_ids: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def results(self) -> list[dict[str, Any]]:
        """As in a COCO results file: image_id, category_id, bbox (x, y, width, height), score."""
        columns = (self.image_ids, self.rows[:, 5].long(), self.rows[:, :4], self.rows[:, 4])
        keys = ("image_id", "category_id", "bbox", "score")
        return [dict(zip(keys, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]


class GroundTruth:
    """The objects of a split, indexed once for every evaluation of a run.

    Keeps only what the evaluation of boxes needs: polygons are most of an annotation file. Images are numbered from 1
    in the order of their ids, as in COCOeval.
    """

    def __init__(self, content: dict[str, Any], backend: str = "faster_coco_eval") -> None:
        """content: from `CocoSplit.ground_truth`; it is not changed. backend: a key of BACKENDS."""
        self.backend = backend
        self.names = {category["id"]: category["name"] for category in content["categories"]}
        self.image_ids = np.unique(np.array([image["id"] for image in content["images"]], np.int64))
        annotations = content["annotations"]
        owners = self.numbers(np.array([one["image_id"] for one in annotations], np.int64))
        objects = [
            {
                "id": i,
                "image_id": owner,
                "category_id": one["category_id"],
                "bbox": [float(side) for side in one["bbox"]],
                "area": one["area"],
                "iscrowd": int(one["iscrowd"]),
            }
            for i, (owner, one) in enumerate(zip(owners, annotations, strict=True), start=1)  # 0 means "no match"
        ]
        self.index = self._indexed(objects)

    def evaluate(self, table: DetectionTable) -> Any:
        """COCOeval on boxes, evaluated and accumulated."""
        with collector_paused(), contextlib.redirect_stdout(io.StringIO()):
            _, evaluator = BACKENDS[self.backend]
            evaluation = evaluator(self.index, self._indexed(self._detections(table)), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation

    def numbers(self, image_ids: np.ndarray) -> list[int]:
        """[N] image ids -> the numbers of these images."""
        places = np.searchsorted(self.image_ids, image_ids)
        assert (self.image_ids[places.clip(max=len(self.image_ids) - 1)] == image_ids).all(), (
            "an image of another split"
        )
        return (places + 1).tolist()

    def _detections(self, table: DetectionTable) -> list[dict[str, Any]]:
        rows = table.rows.numpy(force=True)
        areas = rows[:, 2] * rows[:, 3]
        columns = (rows[:, 5].astype(np.int64), rows[:, :4], rows[:, 4], areas)
        numbers = self.numbers(table.image_ids.numpy(force=True))
        lines = zip(numbers, *(column.tolist() for column in columns), strict=True)
        return [
            {"id": i, "image_id": n, "category_id": category, "bbox": box, "score": score, "area": area, "iscrowd": 0}
            for i, (n, category, box, score, area) in enumerate(lines, start=1)
        ]

    def _indexed(self, annotations: list[dict[str, Any]]) -> Any:
        index_class, _ = BACKENDS[self.backend]
        index = index_class()
        index.dataset = {
            "images": [{"id": number} for number in range(1, len(self.image_ids) + 1)],
            "annotations": annotations,
            "categories": [{"id": category, "name": name} for category, name in self.names.items()],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            index.createIndex()
        return index


def coco_metrics(truth: GroundTruth, table: DetectionTable) -> dict[str, Any]:
    """COCO_METRICS by name, and AP_by_category {category name: AP}; -1 where undefined."""
    evaluation = truth.evaluate(table)
    metrics: dict[str, Any] = {metric.name: _mean(_values(evaluation, metric)) for metric in COCO_METRICS}
    precision = _values(evaluation, Metric("AP", "precision"))
    metrics["AP_by_category"] = {
        truth.names[category]: _mean(precision[..., k]) for k, category in enumerate(evaluation.params.catIds)
    }
    return metrics


def _values(evaluation: Any, metric: Metric) -> np.ndarray:
    """[IoU, recall, category] of the precision, or [IoU, category] of the recall; -1 where undefined."""
    params, values = evaluation.params, evaluation.eval[metric.table]
    if metric.iou is not None:
        values = values[np.isclose(params.iouThrs, metric.iou)]
        assert len(values) == 1, f"{metric.name}: COCOeval has no IoU of {metric.iou}"
    return values[..., params.areaRngLbl.index(metric.area), list(params.maxDets).index(metric.detections)]


def _mean(values: np.ndarray) -> float:
    """As COCOeval.summarize has it."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0
