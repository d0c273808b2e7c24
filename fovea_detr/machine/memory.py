"""Memory of the device: its peak, its size, and how to recognise that it is exhausted."""

from __future__ import annotations

import gc
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from fovea_detr.errors import OutOfMemoryError

# The messages of torch's allocators, C++, cuBLAS, cuDNN, NCCL and, last, oneDNN.
OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|bad_alloc|ALLOC_FAILED"
    r"|could not create a (memory|primitive)",
    re.IGNORECASE,
)
GIB = 1 << 30


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 160 characters: torch's messages have many lines."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


@contextmanager
def out_of_memory_as_error(where: str) -> Iterator[None]:
    """Turn exhausted memory inside the block into an OutOfMemoryError of one line. where: its beginning."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"{where}: out of memory, although the largest batch fitted before the first step ({first_line(error)}): "
            "is another process using it? Run the same command again to continue from the last checkpoint, or lower "
            "schedule.batch_size"
        ) from None


def release(device: torch.device) -> None:
    """Free the tensors that nothing refers to, and on a GPU the allocator's cache."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def restart_peak(device: torch.device) -> None:
    """Measure the peak from now on. Where Linux does not allow it, the process's peak so far is kept."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The peak since `restart_peak`. GPU: of tensors, without CUDA's own; CPU: the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (peak := status_bytes("VmHWM")) is not None:
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def status_bytes(key: str) -> int | None:
    """Of this process: "VmRSS" (resident now), "VmHWM" (its peak), ...; None where the system has no such file."""
    with suppress(OSError):
        found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        return int(found[1]) << 10 if found else None
    return None


def gpu_bytes(device: torch.device) -> int:
    """The GPU's memory."""
    return torch.cuda.mem_get_info(device)[1]


def format_bytes(size: int) -> str:
    """`11.2 GiB`."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.0f} MiB"
