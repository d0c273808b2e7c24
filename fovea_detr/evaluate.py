"""From predictions to detections to COCO's twelve numbers, and the time one image takes."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from fovea_detr import distributed
from fovea_detr.boxes import cxcywh_to_xyxy
from fovea_detr.types import Batch, Detections, Predictions

# COCOeval.stats by name, in its order.
METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
METRICS += ("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large")


def postprocess(predictions: Predictions, sizes_hw: Tensor) -> list[Detections]:
    """Predictions (the last layer counts) and sizes [B, 2] in pixels to scale to -> each image's detections.

    Sigmoid outputs: the Q best of all Q x C scores, as published. Softmax: each query's best class but "no object".
    """
    logits, boxes = predictions.logits[-1], cxcywh_to_xyxy(predictions.boxes_cxcywh[-1])
    num_queries, num_outputs = logits.shape[1:]
    if predictions.activation == "sigmoid":
        scores, index = logits.sigmoid().flatten(1).topk(num_queries, dim=1)
        query, labels = index // num_outputs, index % num_outputs
    else:
        best, classes = logits.softmax(-1)[..., :-1].max(-1)
        scores, query = best.sort(dim=1, descending=True)
        labels = classes.gather(1, query)
    sizes_hw = sizes_hw.to(boxes.device)
    scale = sizes_hw.flip(-1).repeat(1, 2).to(boxes.dtype)[:, None]  # [B, 1, 4] as (w, h, w, h)
    boxes = boxes.gather(1, query[..., None].expand(-1, -1, 4)) * scale
    return [Detections(*one) for one in zip(scores, labels, boxes, strict=True)]


@torch.no_grad()
def detect(
    model: nn.Module,
    batches: Iterable[tuple[Batch, Any]],
    device: torch.device,
    precision: str,
    before_each: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Run the model over batches -> COCO results: image_id, category_id, bbox (x, y, width, height in pixels), score.

    before_each: called before every batch; what it raises ends the evaluation.
    """
    model.eval()
    results = []
    for batch, _ in batches:
        before_each()
        with autocast(device, precision):
            predictions = model(batch.to(device))
        for image_id, found in zip(batch.image_ids, postprocess(predictions, batch.original_sizes_hw), strict=True):
            results.extend(coco_results(image_id, found))
    return results


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def coco_results(image_id: int, found: Detections) -> list[dict[str, Any]]:
    boxes = found.boxes_xyxy.clone()
    boxes[:, 2:] -= boxes[:, :2]
    rows = zip(found.scores.tolist(), found.labels.tolist(), boxes.tolist(), strict=True)
    return [{"image_id": image_id, "category_id": label, "bbox": box, "score": score} for score, label, box in rows]


def gather_results(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every rank's results on every rank, in an order that does not depend on the number of ranks."""
    everything = [result for part in distributed.gather(results) for result in part]
    return sorted(everything, key=lambda result: result["image_id"])  # stable: best first inside an image


def coco_metrics(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """COCOeval on boxes -> the twelve numbers by name, and AP_by_category {category name: AP}; -1 where undefined."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _coco(ground_truth)
        found = _found(truth, results) if results else _coco({**ground_truth, "annotations": []})
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics: dict[str, Any] = {name: float(value) for name, value in zip(METRICS, evaluation.stats, strict=True)}
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, category], all areas, 100 detections
    metrics["AP_by_category"] = {
        names[category]: float(known.mean()) if (known := precision[..., k][precision[..., k] > -1]).size else -1.0
        for k, category in enumerate(evaluation.params.catIds)
    }
    return metrics


@torch.no_grad()
def inference_seconds(
    model: nn.Module, batches: Iterable[tuple[Batch, Any]], device: torch.device, precision: str
) -> float:
    """DETR's protocol: the mean seconds of one image at batch 1 over the given images, model and copy, warmed up.

    The first image is run three times before the clock starts.
    """
    model.eval()
    seconds, timed = 0.0, 0
    for batch, _ in batches:
        for _ in range(3 if timed == 0 else 0):
            _timed_pass(model, batch, device, precision)
        seconds += _timed_pass(model, batch, device, precision)
        timed += len(batch)
    return seconds / max(1, timed)


def _timed_pass(model: nn.Module, batch: Batch, device: torch.device, precision: str) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    with autocast(device, precision):
        postprocess(model(batch.to(device)), batch.original_sizes_hw)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _found(truth: COCO, results: list[dict[str, Any]]) -> COCO:
    copies: Any = [dict(result) for result in results]  # pycocotools writes into them, and says that it wants a path
    return truth.loadRes(copies)


def _coco(dataset: dict[str, Any]) -> COCO:
    coco: Any = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco
