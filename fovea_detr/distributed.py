"""Processes: who am I, and the few collectives a run needs. Without a process group everything is the single process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join torchrun's process group (RANK, WORLD_SIZE, ... in the environment) for the duration of the block, if any.

    nccl on GPUs, gloo on CPU. Leaving the block on an error does not wait for the other ranks.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=30))
    yield
    dist.destroy_process_group()


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_active() else 0


def world_size() -> int:
    return dist.get_world_size() if is_active() else 1


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over ranks, on every rank."""
    if not is_active():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / world_size()


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up on any rank."""
    if not is_active():
        return flag
    value = torch.tensor([int(flag)], device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def gather(value: Any) -> list[Any]:
    """Every rank's object, in the order of the ranks, on every rank."""
    if not is_active():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_first(value: Any) -> Any:
    """Rank 0's object, on every rank."""
    if not is_active():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def barrier() -> None:
    if is_active():
        dist.barrier()
