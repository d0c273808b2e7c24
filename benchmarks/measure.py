"""Measurement tools: alternating sides, medians, new processes, peak memory, counts of operations and host reads.

    python -m benchmarks.measure MODULE:FUNCTION '{"argument": 1}'      started by `fresh`; prints the result as JSON

Time: both sides alternate in one process, so that other load on the machine affects both equally, and on a CPU they are
timed in CPU seconds; the first pass is discarded and the median reported. On a CPU, time depends on whether glibc
returns large blocks to the kernel, because zeroing new pages costs as much as the arithmetic. DEFAULT_MALLOC is glibc's
default, which users get and the table's ratios use; KEPT makes glibc keep all memory, like a caching allocator, which
leaves only the arithmetic. On some CPUs time also depends on denormals, which a Gaussian prior produces: our runs flush
them, the published code does not. A second ratio in a note has KEPT and flushed denormals on both sides.

Memory: on a CPU the kernel's high-water mark of resident memory (VmHWM, which unlike ru_maxrss starts anew with the
program) minus the resident memory before, in a separate process whose glibc returns every large block immediately, so
that the mark counts only what is allocated at the same time. On a GPU, torch's peak.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fovea_detr.machine.device import denormals_flushed, seconds
from fovea_detr.machine.memory import status_bytes

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_MALLOC: dict[str, str] = {}
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**16)}
MIB = 2**20

Side = Callable[[], object]


def medians(sides: Sequence[Side], runs: int, device: torch.device | str = "cpu") -> list[float]:
    """The median seconds of each side; the sides alternate. On a CPU they are this process's own CPU seconds."""
    device = torch.device(device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    rounds = [[seconds(side, device, clock) for side in sides] for _ in range(runs + 1)]
    return [median(taken) for taken in zip(*rounds[1:], strict=True)]


def in_turn(
    plain: Side, ours: Side, runs: int, device: torch.device | str = "cpu", *, equal_arithmetic: bool = False
) -> tuple[float, float]:
    """-> the median seconds of both sides. Ours flushes denormals on a CPU, as a run does; the plain side does not, as
    published, unless equal_arithmetic is set."""

    def as_in_a_run(side: Side) -> Side:
        def work() -> None:
            with denormals_flushed(torch.device(device)):
                side()

        return work

    slow, fast = medians((as_in_a_run(plain) if equal_arithmetic else plain, as_in_a_run(ours)), runs, device)
    return slow, fast


def resident_bytes(key: str) -> int:
    """key: VmRSS (now) or VmHWM (peak) of this process."""
    found = status_bytes(key)
    assert found is not None, "memory is measured on Linux only"
    return found


def peak_bytes(work: Side, device: torch.device | str = "cpu") -> int:
    """Peak bytes of `work` above the memory in use before. On a CPU, call it only once per process."""
    device = torch.device(device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    before = resident_bytes("VmRSS")
    work()
    return resident_bytes("VmHWM") - before


def fresh(function: str, malloc: dict[str, str] = DEFAULT_MALLOC, **arguments: Any) -> Any:
    """The result of `MODULE:FUNCTION` with these arguments in a new process with one thread."""
    return fresh_together(function, [malloc], **arguments)[0]


def fresh_together(function: str, environments: Sequence[dict[str, str]], **arguments: Any) -> list[Any]:
    """The same in several processes at once, one per environment."""
    command = [sys.executable, "-m", "benchmarks.measure", function, json.dumps(arguments)]
    base = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=base | extra, stdout=subprocess.PIPE, text=True)
        for extra in environments
    ]
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{function} failed for {arguments}: see its message above")
    return [json.loads(text.splitlines()[-1]) for text in printed]


class Operations(TorchDispatchMode):
    """Context that counts dispatched operations: `all`, and `kernels`, those that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.all += 1
        self.kernels += not func.is_view
        return func(*args, **(kwargs or {}))


class HostReads(TorchFunctionMode):
    """Context that counts reads of a tensor's values by Python, which wait for the device: `.item()`, `.tolist()`,
    `.cpu()`, a truth value, `torch.equal`. Reads of a result of `.cpu()` are not counted."""

    READS = frozenset(("item", "tolist", "cpu", "__bool__", "__float__", "__int__", "__index__", "equal", "nonzero"))

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._on_host: dict[int, Any] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        reads = name in self.READS and id(args[0]) not in self._on_host
        result = func(*args, **(kwargs or {}))
        self.count += reads
        if name == "cpu":
            self._on_host[id(result)] = result
        return result


def operations(work: Side) -> Operations:
    with Operations() as mode:
        work()
    return mode


def host_reads(work: Side) -> int:
    with HostReads() as mode:
        work()
    return mode.count


def copy_bytes_per_second(device: torch.device, mib: int | None = None) -> float:
    """Bandwidth of copying a large block within the device's memory; bytes read and written count."""
    source = torch.empty((mib or (1024 if device.type == "cuda" else 64)) * MIB, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = median(seconds(lambda: target.copy_(source), device) for _ in range(11))
    return 2 * source.numel() / taken


def random_targets(batch: int, objects: int, classes: int = 91) -> list[dict[str, Tensor]]:
    """Random objects for each image: `labels` [T], `boxes` [T, 4] as (cx, cy, w, h) fractions."""
    draw = torch.Generator().manual_seed(3)
    found = []
    for _ in range(batch):
        boxes = torch.rand(objects, 4, generator=draw) * 0.4 + 0.1
        labels = torch.randint(1, classes, (objects,), generator=draw)
        found.append({"labels": labels, "boxes": boxes})
    return found


def main() -> None:
    torch.set_num_threads(1)
    module, function = sys.argv[1].split(":")
    print(json.dumps(getattr(importlib.import_module(module), function)(**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
