"""Matcher and set loss as published by DETR, one decoder layer after the other.

Written from the formulas (Carion et al., 2020; focal form: Zhu et al., Deformable DETR, 2021, summed as SMCA does), in
the published order: objects of all images against queries of all images, one copy to the host per layer, asserts on
boxes that read the device, and the class and cardinality errors, which are only logged.
"""

from __future__ import annotations

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from fovea_detr.config.schema import Config
from fovea_detr.machine import distributed

Match = tuple[Tensor, Tensor]
Objects = list[dict[str, Tensor]]  # per image: `labels` [T], `boxes` [T, 4] as (cx, cy, w, h) fractions


def corners(boxes: Tensor) -> Tensor:
    x, y, w, h = boxes.unbind(-1)
    return torch.stack((x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h), dim=-1)


def pairwise_giou(a: Tensor, b: Tensor) -> Tensor:
    """a [N, 4], b [M, 4] as corners -> [N, M]."""
    assert (a[:, 2:] >= a[:, :2]).all()
    assert (b[:, 2:] >= b[:, :2]).all()
    area_a, area_b = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    sides = (torch.min(a[:, None, 2:], b[:, 2:]) - torch.max(a[:, None, :2], b[:, :2])).clamp(min=0)
    overlap = sides[..., 0] * sides[..., 1]
    union = area_a[:, None] + area_b - overlap
    sides = (torch.max(a[:, None, 2:], b[:, 2:]) - torch.min(a[:, None, :2], b[:, :2])).clamp(min=0)
    hull = sides[..., 0] * sides[..., 1]
    return overlap / union - (hull - union) / hull


class PlainMatcher:
    """classification, l1, giou: weights of the costs; loss: "focal" or "softmax"."""

    def __init__(self, classification: float, l1: float, giou: float, loss: str) -> None:
        self.classification, self.l1, self.giou, self.loss = classification, l1, giou, loss

    @torch.no_grad()
    def __call__(self, outputs: dict[str, Any], targets: Objects) -> list[Match]:
        batch, num_queries = outputs["pred_logits"].shape[:2]
        logits = outputs["pred_logits"].flatten(0, 1)
        boxes = outputs["pred_boxes"].flatten(0, 1)
        labels = torch.cat([target["labels"] for target in targets])
        wanted = torch.cat([target["boxes"] for target in targets])
        l1 = torch.cdist(boxes, wanted, p=1)
        giou = pairwise_giou(corners(boxes), corners(wanted))
        cost = self.l1 * l1 + self.classification * self.class_cost(logits)[:, labels] - self.giou * giou
        cost = cost.view(batch, num_queries, -1).cpu()
        sizes = [len(target["boxes"]) for target in targets]
        pairs = [linear_sum_assignment(c[i]) for i, c in enumerate(cost.split(sizes, -1))]
        return [(torch.as_tensor(i, dtype=torch.int64), torch.as_tensor(j, dtype=torch.int64)) for i, j in pairs]

    def class_cost(self, logits: Tensor) -> Tensor:
        if self.loss == "softmax":
            return -logits.softmax(-1)
        p, alpha, gamma = logits.sigmoid(), 0.25, 2.0
        as_nothing = (1 - alpha) * (p**gamma) * (-(1 - p + 1e-8).log())
        return alpha * ((1 - p) ** gamma) * (-(p + 1e-8).log()) - as_nothing


def focal_loss(logits: Tensor, is_class: Tensor, num_boxes: float) -> Tensor:
    """logits and is_class [B, Q, C] -> the sum over queries and classes, divided by the number of boxes."""
    p = logits.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(logits, is_class, reduction="none")
    p_right = p * is_class + (1 - p) * (1 - is_class)
    loss = entropy * ((1 - p_right) ** 2)
    loss = (0.25 * is_class + 0.75 * (1 - is_class)) * loss
    return loss.mean(1).sum() / num_boxes * logits.shape[1]


class PlainCriterion(nn.Module):
    """weights: of every loss by its published name. class_outputs: C, the last one "no object" with softmax."""

    class_weights: Tensor

    def __init__(self, matcher: PlainMatcher, weights: dict[str, float], loss: str, class_outputs: int) -> None:
        super().__init__()
        self.matcher, self.weights, self.loss = matcher, weights, loss
        class_weights = torch.ones(class_outputs)
        class_weights[-1] = 0.1
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, outputs: dict[str, Any], targets: Objects) -> dict[str, Tensor]:
        """-> `loss_ce`, `loss_bbox`, `loss_giou`, `cardinality_error` of each layer (`_0`, ... except the last)."""
        last = {name: value for name, value in outputs.items() if name != "aux_outputs"}
        matches = self.matcher(last, targets)
        count = torch.as_tensor([float(sum(len(t["labels"]) for t in targets))], device=last["pred_logits"].device)
        num_boxes = distributed.mean(count).clamp(min=1).item()
        losses = self.of_layer(last, targets, matches, num_boxes, log=True)
        for i, layer in enumerate(outputs["aux_outputs"]):
            matches = self.matcher(layer, targets)
            of_layer = self.of_layer(layer, targets, matches, num_boxes, log=False)
            losses.update({f"{name}_{i}": value for name, value in of_layer.items()})
        return losses

    def of_layer(
        self, outputs: dict[str, Tensor], targets: Objects, matches: list[Match], num_boxes: float, log: bool
    ) -> dict[str, Tensor]:
        return {
            **self.classification(outputs["pred_logits"], targets, matches, num_boxes, log),
            **self.cardinality(outputs["pred_logits"], targets),
            **self.boxes(outputs["pred_boxes"], targets, matches, num_boxes),
        }

    def classification(
        self, logits: Tensor, targets: Objects, matches: list[Match], num_boxes: float, log: bool
    ) -> dict[str, Tensor]:
        where = places(matches)
        chosen = torch.cat([target["labels"][j] for target, (_, j) in zip(targets, matches, strict=True)])
        nothing = logits.shape[-1] if self.loss == "focal" else logits.shape[-1] - 1
        classes = torch.full(logits.shape[:2], nothing, dtype=torch.int64, device=logits.device)
        classes[where] = chosen
        if self.loss == "focal":
            one_hot = logits.new_zeros(*logits.shape[:2], logits.shape[2] + 1)
            one_hot.scatter_(2, classes[..., None], 1)
            losses = {"loss_ce": focal_loss(logits, one_hot[..., :-1], num_boxes)}
        else:
            losses = {"loss_ce": functional.cross_entropy(logits.transpose(1, 2), classes, self.class_weights)}
        if log:
            right = logits[where].argmax(-1) == chosen
            losses["class_error"] = 100 - 100 * right.float().sum() / max(1, len(chosen))
        return losses

    @torch.no_grad()
    def cardinality(self, logits: Tensor, targets: Objects) -> dict[str, Tensor]:
        lengths = torch.as_tensor([len(target["labels"]) for target in targets], device=logits.device)
        found = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
        return {"cardinality_error": functional.l1_loss(found.float(), lengths.float())}

    def boxes(self, boxes: Tensor, targets: Objects, matches: list[Match], num_boxes: float) -> dict[str, Tensor]:
        own = boxes[places(matches)]
        wanted = torch.cat([target["boxes"][j] for target, (_, j) in zip(targets, matches, strict=True)])
        l1 = functional.l1_loss(own, wanted, reduction="none").sum() / num_boxes
        giou = 1 - torch.diag(pairwise_giou(corners(own), corners(wanted)))
        return {"loss_bbox": l1, "loss_giou": giou.sum() / num_boxes}


def places(matches: list[Match]) -> tuple[Tensor, Tensor]:
    """-> image and query indices of the matched pairs, each [N]."""
    images = torch.cat([torch.full_like(queries, i) for i, (queries, _) in enumerate(matches)])
    return images, torch.cat([queries for queries, _ in matches])


def plain_criterion(config: Config, class_outputs: int) -> PlainCriterion:
    costs, weights, loss = config.model.match_costs, config.model.loss_weights, config.model.loss
    matcher = PlainMatcher(costs.classification, costs.l1, costs.giou, loss)
    by_name = {"loss_ce": weights.classification, "loss_bbox": weights.l1, "loss_giou": weights.giou}
    aux = range(config.model.decoder_layers - 1)
    all_layers = {**by_name, **{f"{name}_{i}": weight for name, weight in by_name.items() for i in aux}}
    return PlainCriterion(matcher, all_layers, loss, class_outputs)
