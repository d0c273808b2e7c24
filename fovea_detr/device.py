"""Work on the device at hand: in which precision, how long it takes to its end, and how it leaves no trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """precision: "fp32", which changes nothing, or "bf16"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def seconds(work: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """How long `work` takes, until the device has done it."""
    wait_for(device)
    begin = clock()
    work()
    wait_for(device)
    return clock() - begin


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def left_as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Afterwards gradients are gone, and buffers, mode and torch's generators are, bit for bit, those of before."""
    buffers, training = {name: buffer.clone() for name, buffer in model.named_buffers()}, model.training
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            model.train(training)
            for parameter in model.parameters():
                parameter.grad = None
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
