"""From predictions to the detections of a whole split, on every rank; and the time one image takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fovea_detr.boxes import cxcywh_to_xyxy
from fovea_detr.evaluation.coco import Found
from fovea_detr.machine import distributed
from fovea_detr.machine.device import autocast, seconds
from fovea_detr.types import Batch, Detections, Predictions


def postprocess(predictions: Predictions, sizes_hw: Tensor) -> list[Detections]:
    """Predictions (the last layer counts) and sizes [B, 2] in pixels to scale to -> each image's detections.

    Sigmoid outputs: the Q best of all Q x C scores, as published. Softmax: each query's best class but "no object".
    """
    return [Detections(*one) for one in zip(*_best(predictions, sizes_hw), strict=True)]


def _best(predictions: Predictions, sizes_hw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-> scores [B, Q], labels [B, Q], boxes [B, Q, 4] as (left, top, right, bottom) in pixels, best first."""
    logits, boxes = predictions.logits[-1], cxcywh_to_xyxy(predictions.boxes_cxcywh[-1])
    num_queries, num_outputs = logits.shape[1:]
    if predictions.activation == "sigmoid":
        scores, index = logits.sigmoid().flatten(1).topk(num_queries, dim=1)
        query, labels = index // num_outputs, index % num_outputs
    else:
        best, classes = logits.softmax(-1)[..., :-1].max(-1)
        scores, query = best.sort(dim=1, descending=True)
        labels = classes.gather(1, query)
    sizes_hw = sizes_hw.to(boxes.device, non_blocking=True)
    scale = sizes_hw.flip(-1).repeat(1, 2).to(boxes.dtype)[:, None]  # [B, 1, 4] as (w, h, w, h)
    return scores, labels, boxes.gather(1, query[..., None].expand(-1, -1, 4)) * scale


@torch.no_grad()
def detect(
    model: nn.Module,
    batches: Iterable[tuple[Batch, Any]],
    device: torch.device,
    precision: str,
    before_each: Callable[[], None] = lambda: None,
) -> Found:
    """Run the model over batches -> all detections, on the device; nothing is copied back from it.

    before_each: called before every batch; what it raises ends the evaluation.
    """
    model.eval()
    image_ids, rows = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, 6, dtype=torch.float64, device=device)]
    for batch, _ in batches:
        before_each()
        with autocast(device, precision):
            predictions = model(batch.to(device))
        found = detection_rows(predictions, batch.original_sizes_hw)
        image_ids.append(torch.tensor(batch.image_ids).repeat_interleave(found.shape[1]))
        rows.append(found.flatten(0, 1))
    return Found(torch.cat(image_ids).to(device), torch.cat(rows))


def detection_rows(predictions: Predictions, sizes_hw: Tensor) -> Tensor:
    """[B, Q, 6] float64: x, y, width, height in pixels, score, category id; best first, the rows of `Found`."""
    scores, labels, boxes = _best(predictions, sizes_hw)
    sides = (boxes[..., :2], boxes[..., 2:] - boxes[..., :2], scores[..., None], labels[..., None])
    return torch.cat([side.double() for side in sides], dim=-1)


def gather_found(found: Found) -> Found:
    """Every rank's detections on every rank, by image id: an order that does not depend on the number of ranks."""
    image_ids, rows = distributed.gather_rows(found.image_ids), distributed.gather_rows(found.rows)
    order = image_ids.argsort(stable=True)  # an image is on one rank, so inside it the best stay first
    return Found(image_ids[order], rows[order])


@torch.no_grad()
def inference_seconds(
    model: nn.Module, batches: Iterable[tuple[Batch, Any]], device: torch.device, precision: str
) -> float:
    """DETR's protocol: the mean seconds of an image at batch 1 over the given images: copy, normalising, model.

    Warmed up: the first image is run three times before the clock starts.
    """
    model.eval()
    total, timed = 0.0, 0
    for batch, _ in batches:
        for _ in range(3 if timed == 0 else 0):
            _timed_pass(model, batch, device, precision)
        total += _timed_pass(model, batch, device, precision)
        timed += len(batch)
    return total / max(1, timed)


def _timed_pass(model: nn.Module, batch: Batch, device: torch.device, precision: str) -> float:
    def work() -> None:
        with autocast(device, precision):
            postprocess(model(batch.to(device)), batch.original_sizes_hw)

    return seconds(work, device)
