"""The process group: this process's rank, and the collectives of a run. Without a group there is one process."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from fovea_detr.errors import UserError
from fovea_detr.machine.rendezvous import connect
from fovea_detr.runs.stop import Stopped

T = TypeVar("T")
_is_alone = False


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the process group (RANK, WORLD_SIZE, ... in the environment) for the duration of the block, if any.

    The address is torchrun's or, in a SLURM job, that of a file (FOVEA_RENDEZVOUS), see rendezvous.py. The backend is
    nccl on GPUs, gloo on CPUs. Leaving the block on an error does not wait for the other ranks.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    file = os.environ.get("FOVEA_RENDEZVOUS")
    if file is None or "TORCHELASTIC_RUN_ID" in os.environ:
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    else:
        own, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = connect(Path(file), own, world, os.environ["MASTER_ADDR"])
        dist.init_process_group(backend, store=store, rank=own, world_size=world, timeout=timedelta(minutes=30))
    yield
    dist.destroy_process_group()


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_active() -> bool:
    return dist.is_available() and dist.is_initialized() and not _is_alone


@contextmanager
def alone() -> Iterator[None]:
    """Turn the collectives in the block into local operations, for work at which one rank alone may fail."""
    global _is_alone
    _is_alone = True
    try:
        yield
    finally:
        _is_alone = False


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


def gather(value: Any) -> list[Any]:
    """Every rank's object, in the order of the ranks, on every rank."""
    if not is_active():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather_rows(rows: Tensor) -> Tensor:
    """Every rank's rows [N of the rank, ...] one after another, in the order of the ranks, on every rank.

    N may differ between ranks, and may be 0; the rest of the shape and the dtype must be equal.
    """
    if not is_active():
        return rows
    # nccl takes tensors on GPUs only, gloo on CPUs.
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=device))
    lengths = torch.cat(counts).tolist()
    padded = rows.new_zeros(max(lengths), *rows.shape[1:], device=device)
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


def first_on_node(function: Callable[[], T]) -> T:
    """Call a function on every rank, on each node's first rank before the others, so that a cache is filled once.

    A UserError of a first rank is raised there; the other ranks exit with code 2 and print nothing.
    """
    values: list[T] = []
    error = None
    if local_rank() == 0:
        try:
            values.append(function())
        except UserError as caught:
            error = caught
    anywhere = any(gather(error is not None))
    if error is not None:
        raise error
    if anywhere:
        raise SystemExit(2)
    return values[0] if values else function()


def once_per_node(function: Callable[[], T]) -> T:
    """Call a function on each node's first rank; the other ranks get a copy of its value, through a temporary file.

    Errors: as with `first_on_node`. The value must be picklable.
    """
    if not is_active():
        return function()
    with TemporaryDirectory() as folder:
        own = (socket.gethostname(), local_rank(), Path(folder) / "value")
        file = next(path for host, local, path in gather(own) if (host, local) == (own[0], 0))

        def write_or_read() -> T:
            if own[1] == 0:
                value = function()
                own[2].write_bytes(pickle.dumps(value, protocol=5))
                return value
            return pickle.loads(file.read_bytes()) if file.is_file() else function()

        value = first_on_node(write_or_read)
        gather(None)  # the file is removed when every rank has read it
    return value


def stop_together(function: Callable[[], T]) -> T:
    """Call a function, without collectives, that may raise Stopped: if one rank raises it, all do."""
    value, number = None, 0
    try:
        value = function()
    except Stopped as stopped:
        number = stopped.number
    numbers = gather(number)
    if any(numbers):
        raise Stopped(max(numbers))
    return cast(T, value)


class WithLosses(torch.nn.Module):
    """A model and the losses of its output in one forward pass: the only place where DDP looks for used parameters.

    A part of the model that runs after the matching, on matched queries alone, is called while losses are computed.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any, losses: Callable[[Any], T]) -> T:
        return losses(self.model(batch))


def gradients_kept_local(wrapped: torch.nn.Module) -> AbstractContextManager[None]:
    """In the block, DistributedDataParallel adds up gradients on each rank without averaging them over the ranks."""
    return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()


def share_buffers(model: torch.nn.Module) -> None:
    """Copy rank 0's buffers (running statistics of batch norm), which checkpoints hold, to every rank."""
    if is_active():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
