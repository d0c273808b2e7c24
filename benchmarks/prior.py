"""The decoder's cross-attention with its prior: separable, against the materialised formula of tests/reference.py.

    python benchmarks/prior.py [--runs 9]

One layer, forward and backward, on one CPU thread: batch 2, 300 queries, width 256, 8 heads, float32, no dropout, one
image padded. Both sides get the same weights and inputs, and gradients go to all of them. Every case is measured in
fresh processes, so that none inherits the heap of another. Target: at least 2 times faster, at most half the memory.

Time: the median of several runs, the two sides in turn, so that a busy machine slows both alike. It depends on whether
large blocks go back to the kernel, whose zeroed pages then cost as much as the arithmetic: "as it comes" is glibc's own
choice, what a user gets; "kept" has it keep all memory, like an allocator that caches, and leaves the arithmetic alone.

Memory: the kernel's high-water mark of resident memory over a single pass (VmHWM, which unlike ru_maxrss starts anew
with the program) minus what was resident before it (VmRSS), after the inputs were made and a pass on a 2 x 2 map had
warmed everything up. glibc is told to give every large block back, so that the mark counts what lived at the same time.
Linux only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fovea_detr.fovea.dynamic_scale import Type1, Type2, Type3, Type4
from fovea_detr.fovea.prior import CellGrid, FoveaPrior
from fovea_detr.model.attention import Attention
from fovea_detr.model.transformer import FeedForward
from tests import reference

BATCH, QUERIES, HIDDEN, HEADS, STRIDE, SMOOTH = 2, 300, 256, 8, 32, 8.0
TYPES = {"type1": Type1, "type2": Type2, "type3": Type3, "type4": Type4}
GRIDS = ((25, 34), (32, 42))
AS_IT_COMES: dict[str, str] = {}
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**16)}


@dataclass
class Case:
    """One layer's modules and inputs; `separable` and `materialised` are its output [B, Q, D] computed either way."""

    scale_type: str
    grid: CellGrid
    prior: FoveaPrior
    attention: Attention
    content: Tensor
    query_embed: Tensor
    memory: Tensor
    places: Tensor
    sizes_hw: Tensor

    def separable(self) -> Tensor:
        bias, _ = self.prior(self.content, self.query_embed, None, self.sizes_hw, self.grid)
        return self.attention(self.content + self.query_embed, self.places, self.memory, bias)

    def materialised(self) -> Tensor:
        log_prior, _ = reference.prior(
            dict(self.prior.named_parameters()),
            self.content,
            self.query_embed,
            None,
            self.sizes_hw,
            grid=(self.grid.rows, self.grid.columns, self.grid.stride),
            heads=HEADS,
            scale_type=self.scale_type,
            smooth=SMOOTH,
        )
        is_padding = self.grid.is_padding()
        assert is_padding is not None
        weights, query = dict(self.attention.named_parameters()), self.content + self.query_embed
        return reference.attention(weights, query, self.places, self.memory, HEADS, log_prior, is_padding.flatten(1))


def build(scale_type: str, rows: int, columns: int) -> Case:
    torch.manual_seed(0)
    mlp = FeedForward(HIDDEN, HIDDEN, 2, num_layers=3)
    prior = FoveaPrior(HIDDEN, HEADS, TYPES[scale_type](HIDDEN, HEADS), SMOOTH, mlp)
    for parameter in prior.dynamic_scale.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.02)
    of_rows, of_columns = (torch.zeros(BATCH, side, dtype=torch.bool) for side in (rows, columns))
    of_columns[1, columns * 3 // 4 :] = True
    content, query_embed = (torch.randn(*n, HIDDEN, requires_grad=True) for n in ((BATCH, QUERIES), (QUERIES,)))
    memory, places = (torch.randn(BATCH, rows * columns, HIDDEN, requires_grad=True) for _ in range(2))
    sizes = torch.tensor([[rows * STRIDE, columns * STRIDE], [rows * STRIDE, columns * 3 // 4 * STRIDE]])
    grid, attention = CellGrid(rows, columns, STRIDE, of_rows, of_columns), Attention(HIDDEN, HEADS, dropout=0.0)
    return Case(scale_type, grid, prior, attention, content, query_embed, memory, places, sizes)


def forward_backward(side: Callable[[], Tensor]) -> None:
    side().square().mean().backward()


def seconds(side: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    forward_backward(side)
    return time.perf_counter() - start


def median_seconds(case: Case, runs: int) -> tuple[float, float]:
    """-> separable, materialised; a first pass of each is not counted."""
    pairs = [(seconds(case.separable), seconds(case.materialised)) for _ in range(runs + 1)][1:]
    fast, slow = zip(*pairs, strict=True)
    return median(fast), median(slow)


def resident_bytes(key: str) -> int:
    """key: VmRSS (now) or VmHWM (the most so far) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def peak_bytes(scale_type: str, rows: int, columns: int, side: str) -> int:
    """side: "separable" or "materialised". To be called once in a process."""
    forward_backward(getattr(build(scale_type, 2, 2), side))
    case = build(scale_type, rows, columns)
    before = resident_bytes("VmRSS")
    forward_backward(getattr(case, side))
    return resident_bytes("VmHWM") - before


def elsewhere(malloc: dict[str, str], *words: object) -> list[float]:
    """The numbers that this file prints when it is run with these words, in a fresh process."""
    command = [sys.executable, __file__, "--one", *map(str, words)]
    environment = os.environ | malloc | {"OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [float(number) for number in printed.split()]


def one(what: str, scale_type: str, rows: str, columns: str, how: str) -> None:
    """Print one measurement: `time TYPE ROWS COLUMNS RUNS` in seconds, or `peak TYPE ROWS COLUMNS SIDE` in bytes."""
    if what == "peak":
        print(peak_bytes(scale_type, int(rows), int(columns), how))
    else:
        print(*median_seconds(build(scale_type, int(rows), int(columns)), int(how)))


def row(scale_type: str, rows: int, columns: int, runs: int) -> str:
    case = build(scale_type, rows, columns)
    with torch.no_grad():
        error = (case.separable() - case.materialised()).abs().max().item()
    cells = [f"{scale_type}  {rows} x {columns}"]
    for malloc in (AS_IT_COMES, KEPT):
        fast, slow = elsewhere(malloc, "time", scale_type, rows, columns, runs)
        cells.append(f"{1e3 * fast:6.0f} {1e3 * slow:6.0f} {slow / fast:6.2f}x")
    (lean,), (fat,) = (
        elsewhere(GIVEN_BACK, "peak", scale_type, rows, columns, side) for side in ("separable", "materialised")
    )
    cells.append(f"{lean / 2**20:6.0f} {fat / 2**20:6.0f} {lean / fat:6.2f} ")
    return " | ".join([*cells, f"{error:.0e}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="runs of each side; the median counts")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        one(*arguments.one)
        return
    print("separable, materialised:")
    print(f"{'':14} | {'ms, memory as it comes':22} | {'ms, memory kept':22} | {'peak MiB':22} |")
    for rows, columns in GRIDS:
        for scale_type in TYPES:
            print(row(scale_type, rows, columns, arguments.runs), flush=True)


if __name__ == "__main__":
    main()
