"""Memory of the device at hand: its peak, its limit, and what "out of memory" looks like there."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from fovea_detr.errors import OutOfMemoryError

OUT_OF_MEMORY = re.compile(  # what torch's allocators, C++, cuBLAS, cuDNN, NCCL and, last, oneDNN say
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|bad_alloc|ALLOC_FAILED"
    r"|could not create a (memory|primitive)",
    re.IGNORECASE,
)
GIB = 1 << 30
CGROUPS = Path("/sys/fs/cgroup")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def words(error: BaseException) -> str:
    """The beginning of what it says: torch goes on for many lines."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


@contextmanager
def shortage_named(where: str) -> Iterator[None]:
    """Out of memory inside the block is one line that begins with `where`, which names the rank."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"{where}: out of memory, although the worst batch fitted before the first step ({words(error)}): does "
            "another process use it? The same command goes on from what is saved, else lower schedule.batch_size"
        ) from None


def release(device: torch.device) -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)


def restart_peak(device: torch.device) -> None:
    """Let the peak begin at what is in use now. A Linux that does not allow it keeps the process' peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The most since `restart_peak`. GPU: of tensors, without CUDA's own; CPU: the process' resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (most := status_bytes("VmHWM")) is not None:
        return most
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


def file_bytes() -> int:
    """This process' resident pages of files, libraries above all; 0 where the system does not tell."""
    return status_bytes("RssFile") or 0


def status_bytes(key: str) -> int | None:
    """Of this process: "VmRSS" (resident now), "VmHWM" (the most so far), ...; None where the system does not tell."""
    with suppress(OSError):
        found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        return int(found[1]) << 10 if found else None
    return None


def limit_bytes(device: torch.device) -> int:
    """The GPU's memory; on a CPU the least of the machine's, the control group's (a job's) and the process' limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *cgroup_limits(CGROUPS)]
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(kind)
        limits += [soft] if soft != resource.RLIM_INFINITY else []
    return min(limits)


def cgroup_limits(root: Path, own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Those of this process' control group and of the ones that hold it, of version 2 or 1."""
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            base = root / controllers
            group = base / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(base):
                    yield from _limit_in(folder / ("memory.limit_in_bytes" if controllers else "memory.max"))


def _limit_in(file: Path) -> Iterator[int]:
    with suppress(OSError, ValueError):  # no such file, or "max"
        yield int(file.read_text())


def shown(size: int) -> str:
    """`11.2 GiB`."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.0f} MiB"
