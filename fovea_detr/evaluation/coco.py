"""Detections of a whole split against its ground truth: COCO's metrics, and AP by category.

The metrics are computed between two epochs, not in a parallel process, which would need a core of its own, and the
newest checkpoint would have to wait for its evaluation. On COCO they are far below 1 % of an epoch.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fovea_detr.data.annotations import collector_paused
from fovea_detr.evaluation.backends import BACKENDS, Boxes, Split
from fovea_detr.evaluation.quality import PanopticMap
from fovea_detr.runs.folder import COCO_METRICS, SEGM, Metric


@dataclass(frozen=True)
class DetectionTable:
    """The detections of many images, N in all, a row each; within an image, best first. On one device.

    image_ids: [N] int64; not a column of the rows, because float64 cannot represent every integer above 2^53.
    rows: [N, 6] float64: x, y, width, height in pixels of the image on disk, score, category id.
    masks: [N] run lengths, as pycocotools has them, on the host; None for boxes alone. maps: of each image, where
    panoptic quality is evaluated.
    """

    image_ids: Tensor
    rows: Tensor
    masks: np.ndarray | None = None
    maps: list[PanopticMap] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Tensor) -> DetectionTable:
        """These rows, [n] int64, in this order."""
        masks = None if self.masks is None else self.masks[places.numpy(force=True)]
        return DetectionTable(self.image_ids[places], self.rows[places], masks, self.maps)

    def of_image(self, image_id: int) -> Tensor:
        """[n, 6] on the CPU: the rows of one image."""
        return self.rows[self.image_ids == image_id].cpu()

    def results(self) -> list[dict[str, Any]]:
        """As in a COCO results file: image_id, category_id, bbox (x, y, width, height), score."""
        columns = (self.image_ids, self.rows[:, 5].long(), self.rows[:, :4], self.rows[:, 4])
        keys = ("image_id", "category_id", "bbox", "score")
        return [dict(zip(keys, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]

    def mask_results(self) -> Iterator[dict[str, Any]]:
        """As in a COCO results file of masks, which has no boxes: with one, its area would count as the mask's."""
        assert self.masks is not None
        columns = (self.image_ids.tolist(), self.rows[:, 5].long().tolist(), self.masks, self.rows[:, 4].tolist())
        for image_id, category_id, rle, score in zip(*columns, strict=True):
            mask = {"size": rle["size"], "counts": rle["counts"].decode()}
            yield {"image_id": image_id, "category_id": category_id, "segmentation": mask, "score": score}


class GroundTruth:
    """The objects of a split, indexed once for every evaluation of a run.

    Keeps only what the evaluation of boxes needs: polygons are most of an annotation file. Images and categories are
    numbered from 1 in the order of their ids, in which COCOeval takes them: not every backend takes any id.
    """

    def __init__(self, content: dict[str, Any], backend: str = "hotcoco") -> None:
        """content: from `CocoSplit.ground_truth`; it is not changed. backend: a key of BACKENDS."""
        self.names = {category["id"]: category["name"] for category in content["categories"]}
        self.image_ids = np.unique(np.array([image["id"] for image in content["images"]], np.int64))
        self.category_ids = np.array(sorted(self.names), np.int64)
        self.split = Split(len(self.image_ids), {k: self.names[i] for k, i in enumerate(sorted(self.names), start=1)})
        self.objects = self._objects(content["annotations"])
        self.backend = backend
        self.index = BACKENDS[backend].truth(self.split, self.objects)

    def evaluate(self, table: DetectionTable, kind: str = "bbox") -> Any:
        """COCOeval, evaluated and accumulated. kind: on boxes (bbox) or on masks (segm)."""
        with collector_paused(), contextlib.redirect_stdout(io.StringIO()):
            backend = BACKENDS[self.backend]
            found = backend.found(self.split, self.index, self.boxes_of(table, kind))
            evaluation = backend.evaluation(self.index, found, kind=kind)
            evaluation.accumulate()
        return evaluation

    def boxes_of(self, table: DetectionTable, kind: str = "bbox") -> Boxes:
        """The detections as columns; those of other categories, which never match, are left out.

        kind: bbox, without their masks; segm, with them and their areas.
        """
        rows = table.rows.numpy(force=True)
        known = np.isin(rows[:, 5], list(self.names))
        rows, image_ids = rows[known], table.image_ids.numpy(force=True)[known]
        areas, none = rows[:, 2] * rows[:, 3], np.zeros(len(rows), bool)
        categories = _places(self.category_ids, rows[:, 5].astype(np.int64)) + 1
        boxes = Boxes(self.numbers(image_ids), categories, rows[:, :4], areas, none, rows[:, 4])
        if kind == "bbox":
            return boxes
        assert table.masks is not None
        return boxes._replace(masks=table.masks[known]).with_areas_of_masks()

    def numbers(self, image_ids: np.ndarray) -> np.ndarray:
        """[N] image ids -> [N] the numbers of these images."""
        return _places(self.image_ids, image_ids) + 1

    def _objects(self, annotations: list[dict[str, Any]]) -> Boxes:
        def column(key: str, kind: type) -> np.ndarray:
            return np.array([one[key] for one in annotations], kind)

        boxes = column("bbox", np.float64).reshape(-1, 4)
        images = self.numbers(column("image_id", np.int64))
        categories = _places(self.category_ids, column("category_id", np.int64)) + 1
        masks = column("segmentation", object) if all(map(_has_rle, annotations)) else None
        return Boxes(images, categories, boxes, column("area", np.float64), column("iscrowd", bool), None, masks)


def _has_rle(annotation: dict[str, Any]) -> bool:
    return isinstance(annotation.get("segmentation"), dict)


def _places(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """[N] ids -> [N] their places in the sorted known ones. ValueError: one is not among them."""
    places = np.searchsorted(known, ids)
    if not (known[places.clip(max=len(known) - 1)] == ids).all():
        raise ValueError("an image or a category of another split")
    return places


def coco_metrics(truth: GroundTruth, table: DetectionTable) -> dict[str, Any]:
    """As `metrics_of`, of boxes; with masks also segm_AP, ..."""
    return metrics_of(truth, table) | (mask_metrics(truth, table) if table.masks is not None else {})


def mask_metrics(truth: GroundTruth, table: DetectionTable) -> dict[str, Any]:
    """segm_AP, ..."""
    return {f"{SEGM}{name}": value for name, value in metrics_of(truth, table, "segm").items()}


def metrics_of(truth: GroundTruth, table: DetectionTable, kind: str = "bbox") -> dict[str, Any]:
    """COCO_METRICS by name, and AP_by_category {category name: AP}; -1 where undefined."""
    evaluation = truth.evaluate(table, kind)
    metrics: dict[str, Any] = {metric.name: _mean(_values(evaluation, metric)) for metric in COCO_METRICS}
    precision = _values(evaluation, Metric("AP", "precision"))
    metrics["AP_by_category"] = {
        truth.split.categories[number]: _mean(precision[..., k]) for k, number in enumerate(evaluation.params.catIds)
    }
    return metrics


def _values(evaluation: Any, metric: Metric) -> np.ndarray:
    """[IoU, recall, category] of the precision, or [IoU, category] of the recall; -1 where undefined."""
    params, values = evaluation.params, evaluation.eval[metric.table]
    values = values[metric.places(list(params.iouThrs))]
    return values[..., params.areaRngLbl.index(metric.area), list(params.maxDets).index(metric.detections)]


def _mean(values: np.ndarray) -> float:
    """As COCOeval.summarize has it."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0
