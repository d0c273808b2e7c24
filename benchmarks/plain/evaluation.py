"""COCO evaluation as published: pycocotools, with one dict per detection, created image by image.

Unlike the published loop, it passes all results at once instead of batch by batch.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fovea_detr.types import Detections

# COCOeval.stats in its order, by the names of fovea_detr.runs.folder.METRICS.
STATS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
STATS += ("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large")


def indexed(content: dict[str, Any]) -> COCO:
    """The indexed ground truth, needed once per run."""
    index: Any = COCO()
    index.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    return index


def coco_numbers(truth: COCO, detections: dict[int, Detections]) -> dict[str, float]:
    """Detections by image id -> the metrics of STATS."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results(detections)), "bbox")  # type: ignore[arg-type]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(STATS, evaluation.stats.tolist(), strict=True))


def results(detections: dict[int, Detections]) -> list[dict[str, Any]]:
    made = []
    for image_id, found in detections.items():
        left, top, right, bottom = found.boxes_xyxy.unbind(1)
        boxes_xywh = [left, top, right - left, bottom - top]
        columns = (found.scores.tolist(), found.labels.tolist(), *(side.tolist() for side in boxes_xywh))
        for score, label, *box in zip(*columns, strict=True):
            made.append({"image_id": image_id, "category_id": label, "bbox": box, "score": score})
    return made
