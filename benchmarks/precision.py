"""`precision=bf16` against fp32 on a CPU: ours on both sides, CPU seconds of one thread, in alternating passes.

    python -m benchmarks.bench --only precision

A row's "plain" is fp32. Its note has the spread of each side's passes, and the processor's instructions for bfloat16;
ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI hides them, to measure a processor without.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.measure import fresh
from benchmarks.step import R50, TINY, Sides
from fovea_detr.machine.device import autocast, bfloat16_instructions, denormals_flushed, seconds

CPU = torch.device("cpu")
CASES = {
    "training step, R50, 480x640, batch 2": ("step", R50, [480, 640], 2),
    "inference, R50, 800x1066, batch 1": ("inference", R50, [800, 1066], 1),
    "training step, tiny, 96x128, batch 16": ("step", TINY, [96, 128], 16),
}


def times(kind: str, overrides: list[str], size_hw: list[int], batch: int, runs: int) -> dict[str, list[float]]:
    """-> CPU seconds of every pass but the first, by precision."""
    works = {one: WORKS[kind]([*overrides, f"precision={one}"], size_hw, batch) for one in ("fp32", "bf16")}
    with denormals_flushed(CPU):
        rounds = [[seconds(work, CPU, time.process_time) for work in works.values()] for _ in range(runs + 1)]
    return dict(zip(works, map(list, zip(*rounds[1:], strict=True)), strict=True))


def step(overrides: list[str], size_hw: list[int], batch: int) -> Callable[[], object]:
    return Sides(overrides, (size_hw[0], size_hw[1]), batch, side="ours").ours


def inference(overrides: list[str], size_hw: list[int], batch: int) -> Callable[[], object]:
    sides = Sides(overrides, (size_hw[0], size_hw[1]), batch, side="ours")
    model = sides.model.eval()

    @torch.no_grad()
    def work() -> None:
        with autocast(CPU, sides.config.precision):
            model(sides.batch)

    return work


WORKS = {"step": step, "inference": inference}


def rows(runs: int) -> list[dict[str, Any]]:
    found, has = [], ", ".join(bfloat16_instructions() or ["no bfloat16 instructions"])
    for what, (kind, overrides, size_hw, batch) in CASES.items():
        passes = fresh(
            "benchmarks.precision:times", kind=kind, overrides=overrides, size_hw=size_hw, batch=batch, runs=runs
        )
        slow, fast = (median(passes[one]) for one in ("fp32", "bf16"))
        spread = ", ".join(f"{name} {min(taken):.3f} to {max(taken):.3f} s" for name, taken in passes.items())
        row = {"part": f"bf16 against fp32: {what}", "plain": slow, "ours": fast, "unit": "s", "ratio": slow / fast}
        found.append({**row, "note": f"{spread}; {has}"})
    return found
