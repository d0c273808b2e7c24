"""`evaluation.losses`: the losses of the validation split, from the forward passes of its evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from fovea_detr.errors import NonFiniteError
from fovea_detr.loss.criterion import Criterion
from fovea_detr.machine import distributed
from fovea_detr.training.reports import last_layer
from fovea_detr.types import Predictions, Target


class ValidationLosses:
    """The means over the batches of an evaluation; each batch's losses are divided by its own number of objects.

    The batches are the same for any number of processes. DETR divides by the mean number of its processes' objects.
    """

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        self.are_finite = True
        self._batches: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def add(self, predictions: Predictions, targets: list[Target]) -> None:
        """One batch. The host waits for the device, because it matches."""
        objects = max(1, sum(len(target) for target in targets))
        num_boxes = torch.full((1,), float(objects), device=predictions.logits.device)
        try:
            self._batches.append(last_layer(self.criterion(predictions, targets, num_boxes=num_boxes)))
        except NonFiniteError:
            self.are_finite = False

    def means(self) -> dict[str, float]:
        """`val_loss`, `val_loss_l1`, `val_class_error`, ... over all ranks, which all call this.

        Empty if a prediction is NaN or infinite, which cannot be matched.
        """
        own = [{name: value.item() for name, value in batch.items()} for batch in self._batches]
        gathered = distributed.gather((self.are_finite, own))
        batches = [batch for _, of_rank in gathered for batch in of_rank]
        if not all(are_finite for are_finite, _ in gathered) or not batches:
            return {}
        return {f"val_{name}": sum(batch[name] for batch in batches) / len(batches) for name in batches[0]}
