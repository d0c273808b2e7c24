"""Detections of a whole split against its ground truth: COCO's twelve numbers, and AP by category.

Two backends give the same numbers: faster-coco-eval (C++, what a run uses) and pycocotools, the referee it is tested
against. Both get their detections through `dataset` and `createIndex` instead of `loadRes`, which would add a polygon
to each and index the array a number at a time: almost twice the time for loading detections.

The metrics are computed in place, between two epochs, not in a process beside the next one. On 5000 images and one
busy core they took 13 s (100 detections an image) and 24 s (300), against 8 to 30 minutes of an epoch on COCO: 1 to
5 %. Hiding that would not be free: the newest checkpoint would wait for its evaluation, and a core for nothing else.
"""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from torch import Tensor

from fovea_detr.runs.folder import METRICS

# evaluation.backend -> (the index of a data set, the evaluation)
BACKENDS: dict[str, tuple[Any, Any]] = {
    "faster_coco_eval": (
        faster_coco_eval.COCO,
        partial(faster_coco_eval.COCOeval_faster, print_function=lambda _: None),  # else it logs, and a run shows logs
    ),
    "pycocotools": (pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval),
}


@dataclass(frozen=True)
class Found:
    """The detections of many images, N in all, a row each; best first inside an image. On one device.

    image_ids: [N] int64; not a column of the rows, because float64 has no place for every integer above 2^53.
    rows: [N, 6] float64: x, y, width, height in pixels of the image on disk, score, category id.
    """

    image_ids: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def results(self) -> list[dict[str, Any]]:
        """As a COCO results file lists them: image_id, category_id, bbox (x, y, width, height), score."""
        columns = (self.image_ids, self.rows[:, 5].long(), self.rows[:, :4], self.rows[:, 4])
        keys = ("image_id", "category_id", "bbox", "score")
        return [dict(zip(keys, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]


class GroundTruth:
    """The objects of a split, indexed once for every evaluation of a run.

    Of the annotation file only what boxes are evaluated with is kept; polygons are most of its size. Images are
    numbered 1.. in the order of their ids, the order in which COCOeval takes them.
    """

    def __init__(self, content: dict[str, Any], backend: str = "faster_coco_eval") -> None:
        """content: as from `CocoSplit.ground_truth`; it is left as it is. backend: a key of BACKENDS."""
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
            for i, (owner, one) in enumerate(zip(owners, annotations, strict=True), start=1)  # 0 would be "no match"
        ]
        self.index = self._indexed(objects)

    def evaluate(self, found: Found) -> Any:
        """COCOeval on boxes, evaluated, accumulated and summarised."""
        with _collector_paused(), contextlib.redirect_stdout(io.StringIO()):
            _, evaluator = BACKENDS[self.backend]
            evaluation = evaluator(self.index, self._indexed(self._detections(found)), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation

    def numbers(self, image_ids: np.ndarray) -> list[int]:
        """[N] image ids -> their images' numbers."""
        places = np.searchsorted(self.image_ids, image_ids)
        assert (self.image_ids[places.clip(max=len(self.image_ids) - 1)] == image_ids).all(), (
            "an image of another split"
        )
        return (places + 1).tolist()

    def _detections(self, found: Found) -> list[dict[str, Any]]:
        rows = found.rows.numpy(force=True)
        areas = rows[:, 2] * rows[:, 3]
        columns = (rows[:, 5].astype(np.int64), rows[:, :4], rows[:, 4], areas)
        numbers = self.numbers(found.image_ids.numpy(force=True))
        table = zip(numbers, *(column.tolist() for column in columns), strict=True)
        return [
            {"id": i, "image_id": n, "category_id": category, "bbox": box, "score": score, "area": area, "iscrowd": 0}
            for i, (n, category, box, score, area) in enumerate(table, start=1)
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


def coco_metrics(truth: GroundTruth, found: Found) -> dict[str, Any]:
    """The twelve numbers by name, and AP_by_category {category name: AP}; -1 where undefined."""
    evaluation = truth.evaluate(found)
    metrics: dict[str, Any] = {name: float(value) for name, value in zip(METRICS, evaluation.stats, strict=True)}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, category], all areas, 100 detections
    metrics["AP_by_category"] = {
        truth.names[category]: float(known.mean())
        if (known := precision[..., k][precision[..., k] > -1]).size
        else -1.0
        for k, category in enumerate(evaluation.params.catIds)
    }
    return metrics


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """A million dicts without a cycle among them: looking for cycles takes longer than making them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
