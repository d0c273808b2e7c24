"""Growth of cost, ours and plain, as points and as one figure: with cells, queries and images of a batch (prior +
attention core), ranks (a training step), and images of an evaluation.

Ranks are processes on this machine that communicate with gloo, each with its own batch. With fewer cores than ranks the
curve shows only the cost of waiting for a core; the title gives the number of cores.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.core import COLUMNS, QUERIES, ROWS, times
from benchmarks.measure import fresh_together, in_turn
from benchmarks.step import TINY, Sides

KIND = "type3"
CELLS = ((8, 11), (16, 21), (25, 34), (32, 42), (50, 67))
RANKS = (1, 2, 4)
Point = dict[str, Any]  # over, x, plain, ours, unit


def curves(runs: int, device: str = "cpu") -> Iterator[Point]:
    """over: the quantity that grows; x: its value; plain and ours: the cost in `unit`."""
    for rows, columns in CELLS:
        yield _core("cells", rows * columns, runs, device, rows=rows, columns=columns)
    for n in (50, 100, QUERIES, 600):
        yield _core("queries", n, runs, device, queries=n)
    for n in (1, 2, 4, 8):
        yield _core("images of a batch", n, runs, device, batch=n, rows=ROWS // 2, columns=COLUMNS // 2)
    for world in RANKS:
        yield _ranks(world, runs)
    yield from _evaluation()


def _core(over: str, x: int, runs: int, device: str, **sizes: Any) -> Point:
    plain, ours = times(KIND, "core", runs, device=device, **sizes)
    return {"over": over, "x": x, "plain": 1e3 * plain, "ours": 1e3 * ours, "unit": "ms"}


def _ranks(world: int, runs: int) -> Point:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    ranks = [{**address, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(world)]
    found = fresh_together("benchmarks.growth:rank_times", ranks, runs=runs)
    plain, ours = (1e3 * median(side) for side in zip(*found, strict=True))
    return {"over": "ranks", "x": world, "plain": plain, "ours": ours, "unit": "ms"}


def rank_times(runs: int) -> tuple[float, float]:
    """One rank's median seconds per step of the tiny model, batch 4; needs RANK, WORLD_SIZE and so on."""
    dist.init_process_group("gloo")
    try:
        sides = Sides(TINY, (128, 128), 4, wrap=DistributedDataParallel)
        return in_turn(sides.plain, sides.ours, 4 * runs)
    finally:
        dist.destroy_process_group()


def _evaluation() -> list[Point]:
    rows = importlib.import_module("benchmarks.evaluation").growth(runs=1)
    return [
        {"over": "images", "x": row["images"], **{key: row[key] for key in ("plain", "ours", "unit")}} for row in rows
    ]


def draw(points: list[Point], path: Path) -> None:
    """One figure with one axis per growing quantity. Needs matplotlib."""
    from matplotlib import pyplot

    overs = list(dict.fromkeys(point["over"] for point in points))
    figure, axes = pyplot.subplots(1, len(overs), figsize=(3.4 * len(overs), 3.2), layout="constrained", squeeze=False)
    for axis, over in zip(axes[0], overs, strict=True):
        own = [point for point in points if point["over"] == over]
        for side, colour in (("plain", "tab:gray"), ("ours", "tab:blue")):
            axis.plot([p["x"] for p in own], [p[side] for p in own], "o-", color=colour, label=side)
        axis.set(xlabel=over, ylabel=own[0]["unit"], title=TITLES.get(over, over), ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


CORE = f"attention core, {KIND}, training"
CORES = len(os.sched_getaffinity(0))
TITLES = {"cells": CORE, "queries": CORE, "images of a batch": CORE, "images": "COCO evaluation"}
TITLES |= {"ranks": f"step of the tiny model, {CORES} cores"}
