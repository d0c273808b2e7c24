"""The device: which one, precision, timing, denormals, and restoring a model after a trial."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from fovea_detr.config.schema import Config
from fovea_detr.errors import ConfigError, NodeError
from fovea_detr.machine import distributed

BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86 and ARM processors, as Linux names them
CPU_FACTS = Path("/proc/cpuinfo")


def bfloat16_instructions() -> list[str] | None:
    """Those that this processor has; without any, bf16 is slower than fp32 on it. None: it is not known."""
    try:
        words = CPU_FACTS.read_text().split()
    except OSError:
        return None
    return sorted(BFLOAT16.intersection(words))


def choose_device(config: Config, gpus_asked: str = "") -> torch.device:
    """device=auto is this local rank's GPU if there is one. Raises ConfigError for a missing device or precision.

    gpus_asked: what a job has asked for; NodeError if its node shows none.
    """
    has_gpu = torch.cuda.is_available()
    if gpus_asked and config.device != "cpu" and not has_gpu:
        raise NodeError(
            f"node {socket.gethostname()}: the job asked for {gpus_asked}, but torch {torch.__version__} sees no GPU "
            "there; use device=cpu to train on the CPU"
        )
    if config.device == "cuda" and not has_gpu:
        raise ConfigError("device=cuda: torch sees no GPU here; use device=cpu, or a torch build for this driver")
    if config.device == "cpu" or not has_gpu:
        return torch.device("cpu")
    local, count = distributed.local_rank(), torch.cuda.device_count()
    if local >= count:
        raise ConfigError(
            f"local rank {local} has no GPU: this node shows {count}; start at most {count} processes on it"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    if config.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(f"precision=bf16: {torch.cuda.get_device_name(device)} has no bfloat16; use precision=fp32")
    return device


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """precision: "fp32", which changes nothing, or "bf16"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def seconds(work: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """The seconds that `work` takes, until the device has finished it."""
    synchronize(device)
    begin = clock()
    work()
    synchronize(device)
    return clock() - begin


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def denormals_flushed(device: torch.device) -> Iterator[None]:
    """On a CPU, in this thread and those it starts inside the block: numbers below 1.2e-38 count as 0.

    Softmax after a Gaussian has many such weights, too small to change a sum, and on some CPUs each costs a hundred
    cycles: the attention took 3.7 times as long there. Torch's default is restored afterwards.
    """
    is_set = device.type == "cpu" and torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if is_set:
            torch.set_flush_denormal(False)


@contextmanager
def restored_afterwards(model: nn.Module, device: torch.device) -> Iterator[None]:
    """After the block, buffers, training mode and torch's generators are restored bit for bit; gradients are None."""
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
