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
def denormals_flushed(device: torch.device) -> Iterator[None]:
    """On a CPU, in this thread and those it starts inside the block: what is below 1.2e-38 counts as 0.

    Softmax behind a Gaussian is full of such weights, too small to be seen in any sum, and on some CPUs each costs a
    hundred cycles: there the attention took 3.7 times as long with them. Afterwards torch's default holds again.
    """
    is_set = device.type == "cpu" and torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if is_set:
            torch.set_flush_denormal(False)


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
