"""`train.ema`: the exponential moving average of a run's weights, evaluated beside them."""

from __future__ import annotations

from copy import deepcopy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

WARM_UP = 9  # steps


class Average:
    """The moving average of a model's parameters and buffers.

    After step t = 0, 1, ... of the run: average = d average + (1 - d) weights, with d = min(decay, t / (t + 9)).
    Sources: Polyak and Juditsky, 1992, averaged weights; torch.optim.swa_utils, the update; TensorFlow's
    ExponentialMovingAverage with num_updates, the rule for d, by which the first steps do not linger in a short run.
    Buffers of floats (batch norm's statistics) are averaged in the same way, all others are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """model: after the optimizer's step. step: counted from 0 over the whole run. Synchronises with no device."""
        averaged, current = list(_tensors(self.model)), list(_tensors(model))
        is_float = [tensor.is_floating_point() for tensor in averaged]
        floats = [[x for x, flag in zip(one, is_float, strict=True) if flag] for one in (averaged, current)]
        get_ema_multi_avg_fn(decay_at(self.decay, step))(*floats, 0)  # type: ignore[arg-type]
        for ours, theirs, flag in zip(averaged, current, is_float, strict=True):
            if not flag:
                ours.copy_(theirs)


def decay_at(decay: float, step: int) -> float:
    return min(decay, step / (step + WARM_UP))


def _tensors(model: nn.Module) -> chain[Tensor]:
    return chain(model.parameters(), model.buffers())
