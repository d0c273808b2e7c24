"""Criterion and matcher of six decoder layers: ours, batched, against the plain one, layer by layer.

Batch 2, 300 queries, 92 outputs, 7 objects per image as in COCO. Time, dispatched operations, host reads.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import host_reads, in_turn, operations, random_targets
from benchmarks.plain.criterion import focal_loss, plain_criterion
from fovea_detr.build import build_criterion
from fovea_detr.compose import load_config
from fovea_detr.config.schema import Config
from fovea_detr.machine.device import seconds
from fovea_detr.types import Predictions, Target

LAYERS, QUERIES, CLASSES = 6, 300, 92
OBJECTS = 7  # per image


class Losses:
    """Criterion and matcher of both sides on random predictions for six layers and 7 objects per image."""

    def __init__(self, loss: str, batch: int, device: str = "cpu") -> None:
        config: Config = load_config([f"model.loss={loss}"])
        draw = torch.Generator().manual_seed(2)
        shape = (LAYERS, batch, QUERIES)
        self.logits = (torch.randn(*shape, CLASSES, generator=draw) - 3).to(device).requires_grad_()
        self.boxes = (torch.rand(*shape, 4, generator=draw) * 0.5 + 0.2).to(device).requires_grad_()
        self.activation = "sigmoid" if loss == "focal" else "softmax"
        self.objects = [{k: v.to(device) for k, v in one.items()} for one in random_targets(batch, OBJECTS)]
        self.criterion = build_criterion(config).to(device)
        self.plain_criterion = plain_criterion(config, CLASSES).to(device)

    def ours(self) -> Tensor:
        predictions = Predictions(self.logits, self.boxes, self.activation)
        return self.criterion(predictions, as_targets(self.objects)).total

    def plain(self) -> Tensor:
        layers = [{"pred_logits": a, "pred_boxes": b} for a, b in zip(self.logits, self.boxes, strict=True)]
        losses = self.plain_criterion({**layers[-1], "aux_outputs": layers[:-1]}, self.objects)
        zero = torch.zeros((), device=self.logits.device)
        return sum((losses[name] * weight for name, weight in self.plain_criterion.weights.items()), zero)

    def arithmetic(self, runs: int, device: str) -> str:
        """The time of the class loss of all values, forward and backward, which both sides compute equally."""
        with torch.no_grad():
            is_class = (torch.rand_like(self.logits) < 0.01).float()

        def work() -> None:
            if self.activation == "sigmoid":
                focal_loss(self.logits.flatten(0, 1), is_class.flatten(0, 1), 1.0).backward()
            else:
                (self.logits.log_softmax(-1) * is_class).sum().backward()

        taken = median(seconds(work, torch.device(device)) for _ in range(3 * runs))
        return f"{1e3 * taken:.1f} ms is the class loss of {self.logits.numel()} values, equal on both sides"


def rows(runs: int, device: str = "cpu") -> list[dict[str, Any]]:
    found = []
    for loss in ("focal", "softmax"):
        case = Losses(loss, batch=2, device=device)
        plain, ours = in_turn(lambda c=case: c.plain().backward(), lambda c=case: c.ours().backward(), runs * 3, device)
        part = f"criterion + matcher, {LAYERS} layers, batch 2, {loss}, forward + backward"
        found.append({"part": part, "plain": 1e3 * plain, "ours": 1e3 * ours, "unit": "ms", "ratio": plain / ours})
        found[-1] |= {"prototype": 2.0, "below": case.arithmetic(runs, device)}
        slow, fast = (operations(lambda side=side: side().backward()).all for side in (case.plain, case.ours))
        found.append(
            count_row(
                f"operations dispatched, criterion + matcher, {loss}", slow, fast, 2489 / 356, counted(slow, fast)
            )
        )
        reads = host_reads(case.plain), host_reads(case.ours)
        found.append(count_row(f"reads by the host in criterion + matcher, {loss}", *reads))
    return found


def counted(plain: int, ours: int) -> str:
    return f"{ours} (prototype: 356); the plain side dispatches {plain} (published code: 2489)"


def count_row(part: str, plain: int, ours: int, prototype: float | None = None, below: str = "") -> dict[str, Any]:
    ratio = plain / ours if ours else float("inf")
    return {"part": part, "plain": plain, "ours": ours, "ratio": ratio, "prototype": prototype, "below": below}


def as_targets(objects: list[dict[str, Tensor]]) -> list[Target]:
    return [Target(one["labels"], one["boxes"]) for one in objects]
