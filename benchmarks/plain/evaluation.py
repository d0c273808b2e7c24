"""COCO evaluation as published: a dict a detection, made image by image; pycocotools.

Of the published loop only the bookkeeping is left out (results are handed over at once instead of batch by batch).
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fovea_detr.types import Detections


def indexed(content: dict[str, Any]) -> COCO:
    """The ground truth, once a run."""
    index: Any = COCO()
    index.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    return index


# Of COCOeval.stats, in its order.
NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
NAMES += ("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large")


def coco_numbers(truth: COCO, detections: dict[int, Detections]) -> list[float]:
    """Detections by image id -> the twelve numbers of NAMES."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results(detections)), "bbox")  # type: ignore[arg-type]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def results(detections: dict[int, Detections]) -> list[dict[str, Any]]:
    made = []
    for image_id, found in detections.items():
        left, top, right, bottom = found.boxes_xyxy.unbind(1)
        boxes_xywh = [left, top, right - left, bottom - top]
        columns = (found.scores.tolist(), found.labels.tolist(), *(side.tolist() for side in boxes_xywh))
        for score, label, *box in zip(*columns, strict=True):
            made.append({"image_id": image_id, "category_id": label, "bbox": box, "score": score})
    return made
