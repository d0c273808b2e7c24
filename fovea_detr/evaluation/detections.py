"""From predictions to the detections of a whole split, on all ranks; and the inference time of one image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fovea_detr.boxes import cxcywh_to_xyxy
from fovea_detr.errors import UserError
from fovea_detr.evaluation.coco import DetectionTable
from fovea_detr.evaluation.masks import Rle, encoded_masks, sizes_of, whole_masks
from fovea_detr.evaluation.quality import PanopticMap
from fovea_detr.machine import distributed
from fovea_detr.machine.device import autocast, seconds
from fovea_detr.types import Batch, Detections, Predictions


def postprocess(
    predictions: Predictions, sizes_hw: Tensor, *, masks: bool = False, processed_hw: Tensor | None = None
) -> list[Detections]:
    """Predictions of the last layer, and sizes [B, 2] in pixels to scale the boxes to -> the detections of each image.

    Sigmoid outputs: the Q best of all Q x C scores, as published. Softmax: each query's best class except "no object".
    masks: with a mask of each; processed_hw [B, 2]: the images' own sizes in the batch, which it needs.
    """
    found = [Detections(*one) for one in zip(*_best(predictions, sizes_hw), strict=True)]
    if not masks:
        return found
    if processed_hw is None:
        raise UserError("postprocess(..., masks=True) needs processed_hw, the images' own sizes in the batch [B, 2]")
    queries, sizes = [one.queries for one in found], (sizes_of(processed_hw), sizes_of(sizes_hw))
    pairs = zip(found, whole_masks(predictions, queries, *sizes), strict=True)
    return [replace(one, masks=of_image) for one, of_image in pairs]


def _best(predictions: Predictions, sizes_hw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> scores [B, Q], labels [B, Q], boxes [B, Q, 4] as (left, top, right, bottom) in pixels, queries [B, Q]."""
    logits, boxes = predictions.logits[-1], cxcywh_to_xyxy(predictions.boxes_cxcywh[-1])
    num_queries, num_outputs = logits.shape[1:]
    if predictions.activation == "sigmoid":
        scores, index = logits.sigmoid().flatten(1).topk(num_queries, dim=1)
        query, labels = index // num_outputs, index % num_outputs
    else:
        best, classes = logits.softmax(-1)[..., :-1].max(-1)
        scores, query = best.sort(dim=1, descending=True)
        labels = classes.gather(1, query)
    sizes_hw = torch.as_tensor(sizes_hw).to(boxes.device, non_blocking=True)
    scale = sizes_hw.flip(-1).repeat(1, 2).to(boxes.dtype)[:, None]  # [B, 1, 4] as (w, h, w, h)
    return scores, labels, boxes.gather(1, query[..., None].expand(-1, -1, 4)) * scale, query


@torch.no_grad()
def detect(
    model: nn.Module,
    batches: Iterable[tuple[Batch, Any]],
    device: torch.device,
    precision: str,
    before_each: Callable[[], None] = lambda: None,
    after_each: Callable[[Predictions, Any], None] | None = None,
    *,
    masks: bool = False,
    merge: Callable[[Batch, Predictions], list[PanopticMap]] | None = None,
) -> DetectionTable:
    """Run the model over batches -> all detections, on the device; without masks, nothing is copied to the host.

    before_each: called before every batch; an exception that it raises ends the evaluation. after_each: called with
    every batch's predictions and targets. masks: with those of the detections. merge: with the panoptic maps that it
    makes of each batch.
    """
    model.eval()
    image_ids, rows = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, 6, dtype=torch.float64, device=device)]
    rles: list[Rle] = []
    maps: list[PanopticMap] = []
    for batch, targets in batches:
        before_each()
        with autocast(device, precision):
            predictions = model(batch.to(device))
        if after_each is not None:
            after_each(predictions, targets)
        *best, queries = _best(predictions, batch.original_sizes_hw)
        of_images = _rows(*best)
        image_ids.append(torch.tensor(batch.image_ids).repeat_interleave(of_images.shape[1]))
        rows.append(of_images.flatten(0, 1))
        if masks:
            sizes = sizes_of(batch.sizes_hw), sizes_of(batch.original_sizes_hw)
            rles += encoded_masks(predictions, list(queries), *sizes)
        maps += merge(batch, predictions) if merge is not None else []
    found = (np.array(rles, object) if masks else None, maps if merge is not None else None)
    return DetectionTable(torch.cat(image_ids).to(device), torch.cat(rows), *found)


def detection_rows(predictions: Predictions, sizes_hw: Tensor) -> Tensor:
    """[B, Q, 6] float64: x, y, width, height in pixels, score, category id; best first, as in a DetectionTable."""
    return _rows(*_best(predictions, sizes_hw)[:3])


def _rows(scores: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
    sides = (boxes[..., :2], boxes[..., 2:] - boxes[..., :2], scores[..., None], labels[..., None])
    return torch.cat([side.double() for side in sides], dim=-1)


def in_category_ids(table: DetectionTable, category_ids: Mapping[int, int]) -> DetectionTable:
    """A table whose last column holds outputs of the class head -> one with category ids.

    category_ids: by output. Detections of other outputs are left out.
    """
    outputs = table.rows[:, 5].long()
    highest = max([*category_ids, int(outputs.max()) if len(outputs) else 0])
    lookup = outputs.new_full((highest + 1,), -1)
    lookup[list(category_ids)] = outputs.new_tensor(list(category_ids.values()))
    found = lookup[outputs]
    rows = torch.cat([table.rows[:, :5], found[:, None].double()], dim=1)
    return replace(table, rows=rows).take((found >= 0).nonzero()[:, 0])


def gather_detections(table: DetectionTable) -> DetectionTable:
    """All ranks' detections on every rank, sorted by image id: the order does not depend on the number of ranks."""
    image_ids, rows = distributed.gather_rows(table.image_ids), distributed.gather_rows(table.rows)
    masks = None if table.masks is None else np.concatenate(distributed.gather(table.masks))
    order = image_ids.argsort(stable=True)  # an image is on one rank: its detections stay sorted
    maps = None if table.maps is None else [one for part in distributed.gather(table.maps) for one in part]
    return DetectionTable(image_ids, rows, masks, maps and sorted(maps, key=lambda one: one.image_id)).take(order)


@torch.no_grad()
def inference_seconds(
    model: nn.Module, batches: Iterable[tuple[Batch, Any]], device: torch.device, precision: str
) -> float:
    """As DETR measures it: the mean seconds per image at batch size 1, including copy, normalisation and model.

    Warm-up: the first image is run three times before the clock starts.
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
