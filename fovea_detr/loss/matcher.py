"""Hungarian matching of queries to objects, for all decoder layers and images (Carion et al., DETR, 2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fovea_detr.boxes import cxcywh_to_xyxy, generalised_iou
from fovea_detr.errors import NonFiniteError
from fovea_detr.types import Predictions, Target

Fetch = Callable[[Tensor], np.ndarray]  # a tensor on any device -> its copy on the host
Match = tuple[Tensor, Tensor]  # (queries, objects), each [min(Q, T)] int64 on the CPU, in ascending order of the query


@dataclass(frozen=True)
class Matcher:
    """Weights of the three costs, and the classification cost: "focal" (sigmoid) or "softmax"."""

    classification: float
    l1: float
    giou: float
    loss: str
    alpha: float = 0.25
    gamma: float = 2.0

    @torch.no_grad()
    def __call__(
        self, predictions: Predictions, targets: list[Target], fetch: Fetch | None = None
    ) -> list[list[Match]]:
        """-> matches[layer][image], with one copy to the host, by `fetch`.

        Raises NonFiniteError where a cost is NaN or infinite.
        """
        device = predictions.logits.device
        labels, boxes = (part.to(device, non_blocking=True) for part in pad_targets(targets))
        cost = (fetch or to_host)(self.costs(predictions, labels, boxes))  # [L, B, Q, T]
        sizes = [len(target) for target in targets]
        broken = [b for b, size in enumerate(sizes) if not np.isfinite(cost[:, b, :, :size]).all()]
        if broken:
            raise NonFiniteError(f"the predictions are not finite for image {', '.join(map(str, broken))} of the batch")
        pairs = [linear_sum_assignment(layer[b, :, :size]) for layer in cost for b, size in enumerate(sizes)]
        return _by_layer(pairs, len(targets))

    def costs(self, predictions: Predictions, labels: Tensor, boxes_cxcywh: Tensor) -> Tensor:
        """labels [B, T], boxes [B, T, 4], padded -> cost [L, B, Q, T] in float32; ignore padded columns."""
        boxes = predictions.boxes_cxcywh.float()
        l1 = (boxes[..., :, None, :] - boxes_cxcywh[:, None]).abs().sum(-1)
        giou = generalised_iou(cxcywh_to_xyxy(boxes)[..., :, None, :], cxcywh_to_xyxy(boxes_cxcywh)[:, None])
        by_class = self._class_costs(predictions.logits.float(), labels)
        return self.classification * by_class + self.l1 * l1 - self.giou * giou

    def _class_costs(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits [L, B, Q, C], labels [B, T] -> [L, B, Q, T], as published (focal: Deformable DETR's form)."""
        index = labels[None, :, None].expand(*logits.shape[:3], -1)
        if self.loss == "softmax":
            return -logits.softmax(-1).gather(-1, index)
        p = logits.gather(-1, index).sigmoid()
        as_object = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        as_nothing = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        return as_object - as_nothing


def to_host(values: Tensor) -> np.ndarray:
    """Waits until the device has computed them: the one synchronisation of a training step."""
    return values.cpu().numpy()


def pad_targets(targets: list[Target]) -> tuple[Tensor, Tensor]:
    """B targets of T_b objects -> labels [B, max T] and boxes [B, max T, 4], zeros after each image's own objects."""
    labels = torch.nn.utils.rnn.pad_sequence([t.labels for t in targets], batch_first=True)
    boxes = torch.nn.utils.rnn.pad_sequence([t.boxes_cxcywh for t in targets], batch_first=True)
    return labels, boxes


def _by_layer(pairs: list[tuple[np.ndarray, np.ndarray]], batch: int) -> list[list[Match]]:
    """(queries, objects) of every image, layer after layer -> matches[layer][image], views of one tensor."""
    joined = torch.from_numpy(np.concatenate(pairs, axis=1).astype(np.int64))
    queries, objects = (part.split([len(pair[0]) for pair in pairs]) for part in joined)
    matches = list(zip(queries, objects, strict=True))
    return [matches[start : start + batch] for start in range(0, len(matches), batch)]
