"""Whether the backbone is faster with channels last in GPU memory: measured once per run."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from fovea_detr.machine import distributed
from fovea_detr.machine.device import autocast, seconds
from fovea_detr.model.backbone import Backbone

LARGEST_RATIO = 0.97  # of the times; a smaller gain is noise


def pays_channels_last(backbone: Backbone, images: Tensor, precision: str, runs: int = 5) -> bool:
    """Measured on images [B, 3, h, w] like those of training; every rank returns the first rank's result.

    Call it before the backbone is compiled, and store the result in `backbone.channels_last`. Weights, gradients,
    statistics and random numbers are unchanged.
    """
    if images.device.type != "cuda":
        return False
    try:
        faster = is_faster(backbone, images, precision, runs)
    except torch.OutOfMemoryError:
        faster = False
    return distributed.gather(faster)[0]


def is_faster(backbone: Backbone, images: Tensor, precision: str, runs: int) -> bool:
    """Alternating forward and backward passes in both formats; the first of each, a warm-up, is not counted."""
    modes = {module: module.training for module in backbone.modules()}
    before = backbone.channels_last
    times: dict[bool, list[float]] = {False: [], True: []}
    try:
        backbone.eval()  # trainable norms keep their statistics
        for _ in range(runs + 1):
            for channels_last, measured in times.items():
                backbone.channels_last = channels_last
                measured.append(pass_seconds(backbone, images, precision))
    finally:
        backbone.channels_last = before
        for module, mode in modes.items():
            module.training = mode
    return median(times[True][1:]) < LARGEST_RATIO * median(times[False][1:])


def pass_seconds(
    backbone: nn.Module, images: Tensor, precision: str, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The time of one forward and backward pass, until the device has finished it."""
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]

    def work() -> None:
        with autocast(images.device, precision):
            features = backbone(images)
        if trained:
            torch.autograd.grad(features.float().sum(), trained)

    return seconds(work, images.device, clock)
