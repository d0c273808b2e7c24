"""`experiment=tiny` from the first step to the last AP: our command against a run of the plain implementation.

Each run is a separate process with one thread; the sides alternate by seed. The data is generated before, and the runs
report their own time, without the start of Python. The published loader reads the images in every epoch, ours keeps
them in memory; the note gives the ratio without reading, too. The runs follow each other for minutes, so changing load
on the machine can favour one side; the processor seconds of the whole processes are not affected.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.measure import ROOT, fresh
from benchmarks.step import TINY
from fovea_detr.data.shapes.generate import generate

TRAIN_IMAGES, VAL_IMAGES = 1024, 200
PARTS = {"training": "training", "all": "the whole run", "processor": "processor time"}


def ours(seed: int, cache: Path, overrides: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as runs:
        where = [f"runs={runs}", f"data.cache={cache}", f"seed={seed}"]
        command = [sys.executable, "run.py", "experiment=tiny", *where, *overrides]
        begin = _processor_seconds()
        subprocess.run(command, cwd=ROOT, env=_environment(), check=True, stdout=subprocess.DEVNULL)
        processor = _processor_seconds() - begin
        (path,) = Path(runs).glob("tiny/*/history.jsonl")
        history = [json.loads(line) for line in path.read_text().splitlines()]
        result = json.loads((path.parent / "result.json").read_text())
    training = sum(line["timing"]["images"] for line in history) / result["images_per_second"]
    return {"training": training, "all": 60 * result["minutes"], "AP": history[-1]["AP"], "processor": processor}


def plain(seed: int, root: Path, overrides: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.plain.run", str(root), str(seed), *overrides]
    begin = _processor_seconds()
    done = subprocess.run(command, cwd=ROOT, env=_environment(), check=True, stdout=subprocess.PIPE, text=True)
    printed = json.loads(done.stdout.splitlines()[-1])
    seconds, reading = printed["training_seconds"], printed["reading_seconds"]
    everything = seconds + printed["evaluation_seconds"]
    processor = _processor_seconds() - begin
    measured = {"training": seconds, "all": everything, "step": seconds - reading, "processor": processor}
    return {**measured, "AP": printed["AP"][-1]}


def rows(
    seeds: int = 1, train_images: int = TRAIN_IMAGES, val_images: int = VAL_IMAGES, overrides: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    cache = ROOT / ".cache"
    root = generate(cache, train_images, val_images).resolve()
    sizes = [f"data.train_images={train_images}", f"data.val_images={val_images}"]
    sides: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
    for seed in range(seeds):
        sides["ours"].append(ours(seed, cache.resolve(), [*sizes, *overrides]))
        sides["plain"].append(plain(seed, root, list(overrides)))
    scores = {side: [run["AP"] for run in runs] for side, runs in sides.items()}
    without = sum(run["step"] for run in sides["plain"]) / sum(run["training"] for run in sides["ours"])
    note = f"{without:.2f} without plain's reading of images; AP " + ", plain ".join(
        " ".join(f"{ap:.3f}" for ap in scores[side]) for side in ("ours", "plain")
    )
    training = {**_row("training", sides, note), "prototype": 1.3, "target": 1.3, "below": shared_seconds()}
    processor = _row("processor", sides, "includes the start of Python and the evaluation")
    return [training, _row("all", sides, "includes the evaluation"), processor]


def shared_seconds() -> str:
    """The share of a plain step that is the backbone, forward and backward, which both sides compute equally."""
    step, _, backbone = fresh("benchmarks.step:times", runs=20, overrides=TINY, size_hw=[128, 128], batch=8)
    return f"of a plain step's {1e3 * step:.0f} ms the backbone, the same on both sides, takes {1e3 * backbone:.0f}"


def _row(key: str, sides: dict[str, list[dict[str, float]]], note: str) -> dict[str, Any]:
    fast, slow = (mean(run[key] for run in sides[side]) for side in ("ours", "plain"))
    part = f"experiment=tiny, {PARTS[key]}"
    return {"part": part, "plain": slow, "ours": fast, "unit": "s", "ratio": slow / fast, "note": note}


def _processor_seconds() -> float:
    """Of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}
