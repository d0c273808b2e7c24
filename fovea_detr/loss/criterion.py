"""DETR's set loss: match, then classify every query and regress the boxes of the matched ones, on every decoder layer.

Sources: Carion et al., DETR (softmax, L1, GIoU); Lin et al., focal loss, as used by SMCA (sum over queries and classes,
divided by the number of objects). All ranks divide by the same number, the mean number of objects per rank and
micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fovea_detr.boxes import cxcywh_to_xyxy, generalised_iou
from fovea_detr.loss.focal import focal_loss
from fovea_detr.loss.masks import mask_losses
from fovea_detr.loss.matcher import Fetch, Match, Matcher
from fovea_detr.loss.measures import measures
from fovea_detr.machine import distributed
from fovea_detr.types import Predictions, Target, as_target


@dataclass
class Losses:
    """by_layer: "classification", "l1", "giou" -> [L], unweighted; the last entry is the last decoder layer's.

    With masks, also "mask" and "dice" -> [1], of the last layer alone.

    total: their weighted sum over parts and layers, to be differentiated. matches[layer][image]: (queries, objects).
    measures: class error and cardinality error of the last layer, [] each, for the log.
    """

    by_layer: dict[str, Tensor]
    total: Tensor
    matches: list[list[Match]]
    measures: dict[str, Tensor]


class Criterion(nn.Module):
    """weights: factors of the parts in the total; with "mask" and "dice", predictions and targets must have masks.

    loss: "focal" or "softmax". no_object: its class weight (softmax).
    """

    class_weights: Tensor

    def __init__(
        self, matcher: Matcher, weights: Mapping[str, float], *, loss: str, class_outputs: int, no_object: float = 0.1
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.weights = dict(weights)
        self.loss = loss
        class_weights = torch.ones(class_outputs)
        class_weights[-1] = no_object
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(
        self,
        predictions: Predictions,
        targets: list[Target] | list[Mapping[str, Tensor]],
        fetch: Fetch | None = None,
        num_boxes: Tensor | None = None,
    ) -> Losses:
        """targets: one per image, a Target or DETR's dict of `labels`, `boxes` and perhaps `masks`; it may be empty.

        fetch: copies the matching costs to the host; None: `to_host`. num_boxes [1]: divides L1, GIoU and the focal
        loss; None: `mean_objects` of these targets, for a step without further micro-batches.

        Raises NonFiniteError if the predictions cannot be matched because they are NaN or infinite; DataError if masks
        are to be learned and the targets have none.
        """
        device = predictions.logits.device
        objects = [as_target(target) for target in targets]
        matches = self.matcher(predictions, objects, fetch)
        if num_boxes is None:
            num_boxes = mean_objects([objects], device)
        where, labels, boxes = (part.to(device, non_blocking=True) for part in _matched(matches, objects))
        layer, image, query = where
        matched = predictions.boxes_cxcywh.float()[layer, image, query]  # [N, 4]
        overlap = generalised_iou(cxcywh_to_xyxy(matched), cxcywh_to_xyxy(boxes))
        num_layers = len(matches)
        by_layer = {
            "classification": self._classification(
                predictions.logits.float(), (layer, image, query), labels, num_boxes
            ),
            "l1": _sum_by_layer((matched - boxes).abs().sum(-1), layer, num_layers) / num_boxes,
            "giou": _sum_by_layer(1 - overlap, layer, num_layers) / num_boxes,
        }
        if "mask" in self.weights:
            by_layer |= mask_losses(predictions, objects, matches[-1], num_boxes)
        total = torch.stack([self.weights[part] * value.sum() for part, value in by_layer.items()]).sum()
        count = len(labels) // num_layers  # each layer has as many matches, and the last layer's come last
        image, query, labels = (part[len(part) - count :] for part in (image, query, labels))
        number = torch.tensor([len(target) for target in objects]).to(device, non_blocking=True)
        return Losses(by_layer, total, matches, measures(predictions.logits[-1], image, query, labels, number))

    def _classification(
        self, logits: Tensor, where: tuple[Tensor, Tensor, Tensor], labels: Tensor, num_boxes: Tensor
    ) -> Tensor:
        """logits [L, B, Q, C]; where: (layer, image, query) of the N matched queries; labels [N] -> [L]."""
        if self.loss == "focal":
            return focal_loss(logits, (*where, labels)) / num_boxes
        no_object = logits.shape[-1] - 1
        classes = torch.full(logits.shape[:3], no_object, dtype=torch.int64, device=logits.device)
        classes[where] = labels
        each = functional.cross_entropy(logits.movedim(-1, 1), classes, self.class_weights, reduction="none")
        return each.sum((1, 2)) / self.class_weights[classes].sum((1, 2))


def mean_objects(micro_batches: Sequence[Sequence[Target]], device: torch.device) -> Tensor:
    """The mean number of objects in a micro-batch, over those of this step on all ranks, at least 1 -> [1]."""
    count = sum(len(target) for targets in micro_batches for target in targets)
    return distributed.mean(torch.full((1,), count / len(micro_batches), device=device)).clamp(min=1)


def _matched(matches: list[list[Match]], objects: list[Target]) -> tuple[Tensor, Tensor, Tensor]:
    """All N matched pairs of all layers: (layer, image, query) [3, N], the objects' labels [N] and boxes [N, 4].

    Assembled on the host, where the targets are: three copies to the device instead of two per image.
    """
    pairs = [pair for images in matches for pair in images]
    counts = torch.tensor([len(queries) for queries, _ in pairs])
    index = torch.arange(len(pairs)).repeat_interleave(counts)
    layer, image = index // len(objects), index % len(objects)
    starts = torch.tensor([0] + [len(target) for target in objects]).cumsum(0)
    chosen = torch.cat([chosen for _, chosen in pairs]) + starts[image]
    labels = torch.cat([target.labels for target in objects])[chosen]
    boxes = torch.cat([target.boxes_cxcywh for target in objects]).float()[chosen]
    return torch.stack((layer, image, torch.cat([queries for queries, _ in pairs]))), labels, boxes


def _sum_by_layer(values: Tensor, layer: Tensor, num_layers: int) -> Tensor:
    """values [N], layer [N] -> [L]."""
    return values.new_zeros(num_layers).index_add(0, layer, values)
