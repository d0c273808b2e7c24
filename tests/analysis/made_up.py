"""Generated studies of any size: valid run folders, and folders damaged in various ways."""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fovea_detr.compose import load_config
from fovea_detr.runs.folder import METRICS
from fovea_detr.runs.points import point_name

SEEDS = 3
AXES = {
    "model": ["fovea_r50", "fovea_r101", "detr_focal_r50", "detr_r50"],
    "dynamic_scale": ["type1", "type2", "type3", "type4"],
    "mixture": ["none", "head", "query", "head_query"],
    "schedule": ["50ep", "150ep", "300ep", "500ep"],
}
SMOOTH = "fovea.smooth"  # a number with as many values as needed
BROKEN = ("empty", "half", "foreign", "starting", "binary", "no_result")


def write_study(folder: Path, size: int, epochs: int = 8, broken_share: float = 0.02) -> list[Path]:
    """Write `size` run folders, 3 seeds of a grid of 5 axes -> the broken ones, which cycle through BROKEN."""
    draw = random.Random(0)
    broken: list[Path] = []
    for point, config in itertools.islice(grid(size), size):
        path = folder / point
        path.mkdir(parents=True)
        if draw.random() < broken_share:
            break_folder(path, BROKEN[len(broken) % len(BROKEN)], config)
            broken.append(path)
        else:
            write_run(path, config, draw, epochs)
    return broken


def grid(size: int) -> Iterator[tuple[str, str]]:
    """Points and their config.yaml. Hydra composes each group value once; numbers are replaced in the text."""
    others = math.prod(len(values) for values in AXES.values())
    smooths = [f"{4 + step / 2:g}" for step in range(-(-size // (others * SEEDS)))]
    for values in itertools.product(*AXES.values()):
        overrides = [f"{axis}={value}" for axis, value in zip(AXES, values, strict=True)]
        text = OmegaConf.to_yaml(OmegaConf.structured(load_config(overrides)))
        for smooth, seed in itertools.product(smooths, range(SEEDS)):
            point = point_name([*overrides, f"{SMOOTH}={smooth}", f"seed={seed}"])
            changed = text.replace("smooth: 8.0", f"smooth: {float(smooth)}").replace(
                "\nseed: 0\n", f"\nseed: {seed}\n"
            )
            yield point, changed


def history(draw: random.Random, epochs: int) -> list[dict[str, Any]]:
    lines = []
    for epoch in range(1, epochs + 1):
        scores = {name: 0.05 + 0.35 * epoch / epochs + draw.uniform(-0.02, 0.02) for name in METRICS}
        timing = {"seconds": 60.0, "total_seconds": 60.0 * epoch, "evaluation_seconds": 5.0, "images": 800}
        losses = {"loss": 5.0 / epoch, "loss_classification": 1.0 / epoch, "loss_l1": 0.1, "loss_giou": 0.3}
        lines.append({"epoch": epoch, **losses, "lr": 1e-4, "steps": 50 * epoch, **scores, "timing": timing})
    return lines


def result(lines: list[dict[str, Any]]) -> dict[str, Any]:
    best = max(lines, key=lambda line: line["AP"])
    return {
        "mode": "train",
        "last": {name: lines[-1][name] for name in METRICS},
        "best": {"epoch": best["epoch"], **{name: best[name] for name in METRICS}},
        "epochs": len(lines),
        "steps": lines[-1]["steps"],
        "minutes": lines[-1]["timing"]["total_seconds"] / 60,
        "gpu_hours": lines[-1]["timing"]["total_seconds"] / 900,
        "images_per_second": 14.5,
        "starts": 1,
        "inference_seconds": 0.04,
        "inference_images": 100,
        "parameters": 41_500_000,
        "total_batch_size": 16,
        "world_size": 4,
    }


def provenance(**changes: Any) -> dict[str, Any]:
    return {
        "command": ["run.py", "-m", "dynamic_scale=type1,type2"],
        "device": "NVIDIA V100",
        "world_size": 4,
        "total_batch_size": 16,
        "job": {},
        "code": {"sha": "0123456789abcdef", "uncommitted": ""},
        "python": "3.11.7",
        "packages": {"torch": "2.6.0", "numpy": "2.0.0"},
        "data": {"train": "aaaaaaaaaaaaaaaa", "val": "bbbbbbbbbbbbbbbb"},
        **changes,
    }


def write_run(path: Path, config: str, draw: random.Random, epochs: int) -> None:
    lines = history(draw, epochs)
    (path / "config.yaml").write_text(config)
    (path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "provenance.json").write_text(json.dumps(provenance(), indent=2))
    (path / "state.json").write_text(json.dumps({"state": "done", "time": time.time(), "pid": 1}))
    (path / "result.json").write_text(json.dumps(result(lines), indent=2))


def break_folder(path: Path, how: str, config: str) -> None:
    if how == "half":
        (path / "config.yaml").write_text(config)
        (path / "result.json").write_text('{"last": {"AP": 0.')
    elif how == "foreign":
        (path / "holiday.jpg").write_bytes(b"\xff\xd8\xff")
    elif how == "starting":
        (path / ".lock").touch()
        (path / ".state.json.77.tmp").write_text('{"sta')
    elif how == "binary":
        (path / "config.yaml").write_bytes(b"\xff\xfe\x00")
        (path / "state.json").write_bytes(b"\x00\x01")
        (path / "history.jsonl").write_bytes(b"\xff")
    elif how == "no_result":
        (path / "config.yaml").write_text(config)
        (path / "state.json").write_text('{"state": "done"}')


def write_every_kind(folder: Path, study: str = "dynamic_scale") -> None:
    """A study in every state at once: seeds, another batch size, other code, queued, running, preempted, failed."""
    draw, now = random.Random(1), time.time()
    for name, shift in (("type1", -0.03), ("type2", 0.0), ("type3", 0.02)):
        for seed in range(3):
            changes = {"total_batch_size": 32} if name == "type1" and seed == 2 else {}
            changes |= {"code": {"sha": "fedcba9876543210", "uncommitted": "77"}} if name == "type2" else {}
            lines = [
                {**line, "lr": 1e-4 if line["epoch"] <= 40 else 1e-5} | {key: line[key] + shift for key in METRICS}
                for line in history(draw, 50)
            ]
            path = write_point(folder, [f"dynamic_scale={name}", f"seed={seed}"], lines, **changes)
            outcome = result(lines) | {"total_batch_size": changes.get("total_batch_size", 16)}
            (path / "result.json").write_text(json.dumps(outcome))
            write_state(path, "done")
    part = history(draw, 12)
    start = {"job": "4711_9", "restarts": 2}
    for point, lines, state in (
        (["dynamic_scale=type4", "seed=0"], part, {"state": "running", "time": now, "epoch": 12, "batches_done": 10}),
        (["dynamic_scale=type4", "seed=1"], part[:7], {"state": "preempted", "reason": "SIGUSR2", "start": start}),
        (["dynamic_scale=type4", "seed=2"], [], {"state": "queued", "start": {"job": "4711_11"}}),
        (
            ["mixture=head", "seed=0"],
            part[:3],
            {"state": "failed", "reason": "step 7, rank 0: losses are not finite <nan>"},
        ),
    ):
        path = write_point(folder, point, lines)
        write_state(path, **state)
    (folder / "seed=9").mkdir()
    assert folder.name == study


def write_point(folder: Path, overrides: list[str], lines: list[dict[str, Any]], **changes: Any) -> Path:
    path = folder / point_name(overrides)
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(load_config(overrides))))
    (path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "provenance.json").write_text(json.dumps(provenance(**changes)))
    return path


def write_state(path: Path, state: str, **details: Any) -> None:
    (path / "state.json").write_text(json.dumps({"state": state, "time": time.time(), "pid": 1, **details}))
