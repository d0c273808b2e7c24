"""How things are measured here: sides in turn, medians, fresh processes, peaks, operations and reads by the host.

    python -m benchmarks.measure MODULE:FUNCTION '{"argument": 1}'      what `fresh` starts; prints the answer as JSON

Time: both sides in turn in one process, so that a busy machine slows both alike; the median counts, a first pass does
not. On a CPU it depends on whether large blocks go back to the kernel, whose zeroed pages cost as much as arithmetic:
AS_IT_COMES is glibc's own choice, what a user gets, and what the table's ratios come from; KEPT has it keep all memory,
like an allocator that caches, and leaves the arithmetic alone. On some CPUs it also depends on denormals, of which the
weights behind a Gaussian are full: a run flushes them, the published code does not. Where a note gives a second ratio,
neither of the two differs between the sides.

Memory: on a CPU the kernel's high-water mark of resident memory (VmHWM, which unlike ru_maxrss starts anew with the
program) minus what was resident before, in a process of its own whose glibc gives every large block back at once, so
that the mark counts what lived at the same time. On a GPU torch's own peak.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
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
AS_IT_COMES: dict[str, str] = {}
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**16)}
MIB = 2**20

Side = Callable[[], object]


def medians(sides: Sequence[Side], runs: int, device: torch.device | str = "cpu") -> list[float]:
    """The median seconds of each side, all of them in turn."""
    rounds = [[seconds(side, torch.device(device)) for side in sides] for _ in range(runs + 1)]
    return [median(taken) for taken in zip(*rounds[1:], strict=True)]


def in_turn(
    plain: Side, ours: Side, runs: int, device: torch.device | str = "cpu", *, equal_arithmetic: bool = False
) -> tuple[float, float]:
    """-> the median seconds of both sides. Ours is timed as in a run, which flushes denormals on a CPU, and the plain
    side as published; with equal_arithmetic it has them flushed, too."""

    def as_in_a_run(side: Side) -> Side:
        def work() -> None:
            with denormals_flushed(torch.device(device)):
                side()

        return work

    slow, fast = medians((as_in_a_run(plain) if equal_arithmetic else plain, as_in_a_run(ours)), runs, device)
    return slow, fast


def resident_bytes(key: str) -> int:
    """key: VmRSS (now) or VmHWM (the most so far) of this process."""
    found = status_bytes(key)
    assert found is not None, "memory is measured on Linux only"
    return found


def peak_bytes(work: Side, device: torch.device | str = "cpu") -> int:
    """What `work` needs beyond what is there before it. On a CPU to be called once in a process."""
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


def fresh(function: str, malloc: dict[str, str] = AS_IT_COMES, **arguments: Any) -> Any:
    """What `MODULE:FUNCTION` returns for these arguments in a process of its own, on one thread."""
    return fresh_together(function, [malloc], **arguments)[0]


def fresh_together(function: str, environments: Sequence[dict[str, str]], **arguments: Any) -> list[Any]:
    """The same in several processes at once, one an environment."""
    command = [sys.executable, "-m", "benchmarks.measure", function, json.dumps(arguments)]
    base = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=base | extra, stdout=subprocess.PIPE, text=True)
        for extra in environments
    ]
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{function} failed for {arguments}: its own message is above")
    return [json.loads(text.splitlines()[-1]) for text in printed]


class Operations(TorchDispatchMode):
    """Counts what is dispatched while it is entered: `all`, and `kernels`, those that are no views of their input."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.all += 1
        self.kernels += not func.is_view
        return func(*args, **(kwargs or {}))


class HostReads(TorchFunctionMode):
    """Counts where Python reads a tensor's values, which on an accelerator waits for it: `.item()`, `.tolist()`,
    `.cpu()`, a truth value, `torch.equal`. What `.cpu()` returned is on the host and counts no more."""

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
    """Of a large block within the device's memory, read and written."""
    source = torch.empty((mib or (1024 if device.type == "cuda" else 64)) * MIB, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = median(seconds(lambda: target.copy_(source), device) for _ in range(11))
    return 2 * source.numel() / taken


def random_targets(batch: int, objects: int, classes: int = 91) -> list[dict[str, Tensor]]:
    """Made-up objects of every image: `labels` [T], `boxes` [T, 4] as (cx, cy, w, h) fractions."""
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
