"""Growth of cost, ours and plain, as points and as one figure: with cells, queries and images of a batch (prior +
attention core), ranks (a training step), images of an evaluation, points of a sweep, and runs of a table.

The legend gives p of the fit `start + slope x^p`: 1 is linear. The last two have no plain side; their cost is the CPU
time of the whole command, `run.py -m ... hydra.launcher.dry_run=true` and `analysis/collect.py`.

Ranks are processes on this machine that communicate with gloo, each with its own batch. With fewer cores than ranks the
curve shows only the cost of waiting for a core; the title gives the number of cores.
"""

from __future__ import annotations

import importlib
import os
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.core import COLUMNS, QUERIES, ROWS, times
from benchmarks.measure import ROOT, fresh_together, in_turn
from benchmarks.step import TINY, Sides

KIND = "type3"
CELLS = ((8, 11), (16, 21), (25, 34), (32, 42), (50, 67))
RANKS = (1, 2, 4)
POINTS = (4, 64, 256, 512)
RUNS = (100, 1000, 3000)
POWERS = np.linspace(0.05, 3, 60)
Point = dict[str, Any]  # over, x, plain (None: there is none), ours, unit


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
    for n in POINTS:
        yield {"over": "points", "x": n, "plain": None, "ours": _sweep_seconds(n), "unit": "CPU s"}
    for n in RUNS:
        yield {"over": "runs", "x": n, "plain": None, "ours": _table_seconds(n), "unit": "CPU s"}


def _sweep_seconds(points: int) -> float:
    """CPU seconds in which a sweep on SLURM is composed, checked and shown; nothing is submitted."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "run.py", "-m", "experiment=tiny", "hydra/launcher=submitit_slurm", f"runs={folder}"]
        command += ["hydra.launcher.dry_run=true", f"seed=range({points})"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _table_seconds(runs: int) -> float:
    collect = importlib.import_module("benchmarks.collect")
    with tempfile.TemporaryDirectory() as folder:
        collect.write_study(Path(folder) / "study", runs)
        return collect.measure(Path(folder))[0]


def exponent(x: Sequence[float], cost: Sequence[float]) -> float:
    """p of the least relative squares fit cost = start + slope x^p, start and slope not below 0, p in POWERS."""
    xs, ys = np.asarray(x, float) / max(x), np.asarray(cost, float)

    def error(power: float) -> float:
        terms = np.stack([np.ones_like(xs), xs**power], axis=1) / ys[:, None]
        found = np.linalg.lstsq(terms, np.ones_like(ys), rcond=None)[0]
        if found[0] < 0:  # without a start
            found = np.array([0.0, terms[:, 1].sum() / (terms[:, 1] ** 2).sum()])
        return float(((terms @ found - 1) ** 2).sum())

    return float(min(POWERS, key=error))


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
            curve = [(p["x"], p[side]) for p in own if p[side] is not None]
            if curve:
                label = f"{side}, p = {exponent(*zip(*curve, strict=True)):.2f}" if len(curve) > 2 else side
                axis.plot(*zip(*curve, strict=True), "o-", color=colour, label=label)
        axis.legend(fontsize="small")
        axis.set(xlabel=over, ylabel=own[0]["unit"], title=TITLES.get(over, over), ylim=(0, None))
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


CORE = f"attention core, {KIND}, training"
CORES = len(os.sched_getaffinity(0))
TITLES = {"cells": CORE, "queries": CORE, "images of a batch": CORE, "images": "COCO evaluation"}
TITLES |= {"points": "a sweep's command, dry run", "runs": "the table of all runs"}
TITLES |= {"ranks": f"step of the tiny model, {CORES} cores"}
