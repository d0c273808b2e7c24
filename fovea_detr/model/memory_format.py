"""Whether the backbone is faster on a GPU with channels last in memory: measured there, once."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from fovea_detr.machine import distributed
from fovea_detr.machine.device import autocast, seconds
from fovea_detr.model.backbone import Backbone

WORTH_IT = 0.97  # of the time, at most: less than this is noise


def pays_channels_last(backbone: Backbone, images: Tensor, precision: str, runs: int = 5) -> bool:
    """Measured on images [B, 3, h, w] as training has them; the first rank's answer on every rank.

    To be asked before the backbone is compiled; the answer goes into `backbone.channels_last`. Leaves weights,
    gradients, statistics and random numbers as they were.
    """
    if images.device.type != "cuda":
        return False
    try:
        faster = is_faster(backbone, images, precision, runs)
    except torch.OutOfMemoryError:
        faster = False
    return distributed.gather(faster)[0]


def is_faster(backbone: Backbone, images: Tensor, precision: str, runs: int) -> bool:
    """Forward and backward in either format, in turn; a first pass of each, which chooses kernels, is not counted."""
    modes, before = {module: module.training for module in backbone.modules()}, backbone.channels_last
    took: dict[bool, list[float]] = {False: [], True: []}
    try:
        backbone.eval()  # trainable norms keep their statistics
        for _ in range(runs + 1):
            for channels_last, taken in took.items():
                backbone.channels_last = channels_last
                taken.append(pass_seconds(backbone, images, precision))
    finally:
        backbone.channels_last = before
        for module, mode in modes.items():
            module.training = mode
    return median(took[True][1:]) < WORTH_IT * median(took[False][1:])


def pass_seconds(
    backbone: nn.Module, images: Tensor, precision: str, clock: Callable[[], float] = time.perf_counter
) -> float:
    """One forward and backward pass, to its end on the device."""
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]

    def work() -> None:
        with autocast(images.device, precision):
            features = backbone(images)
        if trained:
            torch.autograd.grad(features.float().sum(), trained)

    return seconds(work, images.device, clock)
