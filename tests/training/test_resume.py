"""Runs that are killed by signals at random steps and resumed are bit-equal to undisturbed runs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fovea_detr.evaluation.matches import wanted_files
from fovea_detr.runs.folder import RunFolder
from tests.launch import only_folder, run_well, start, wait_for

pytestmark = pytest.mark.slow

SHORT = ("experiment=tiny", "schedule.epochs=5", "model.dropout=0.1", "data.val_images=21", "checkpoint.minutes=0.003")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2)


WORKERS = ("data.workers=2", "data.in_memory=false", "data.bucketing=true")
MASKS = ("model.masks=true", "data=shapes_panoptic", "panoptic.score=sigmoid", "panoptic.threshold=0.3")
MASKS += ("panoptic.crop=true",)
BF16 = ("precision=bf16",)


@pytest.mark.parametrize(
    ("ranks", "kills", "more"), [(1, 10, ()), (2, 5, ()), (1, 4, WORKERS), (2, 4, MASKS), (1, 3, BF16)]
)
def test_killed_and_resumed_equals_undisturbed(tmp_path: Path, ranks: int, kills: int, more: tuple[str, ...]) -> None:
    images = f"data.train_images={160 * ranks}"
    arguments = (*SHORT, images, f"data.cache={tmp_path / 'cache'}", *more)
    run_well(*arguments, f"runs={tmp_path / 'calm'}", ranks=ranks)
    draw = random.Random(ranks)
    hits = 0
    for i in range(kills):
        process = start(*arguments, f"runs={tmp_path / 'killed'}", ranks=ranks)
        hits += kill_while_training(process, tmp_path / "killed", SIGNALS[i % 3], draw.uniform(0, 0.6), ranks)
    last = run_well(*arguments, f"runs={tmp_path / 'killed'}", ranks=ranks)
    assert hits >= kills - 2, "too few signals arrived during training"
    assert "resumed after" in last or "done already" in last
    assert_equal_runs(only_folder(tmp_path / "calm"), only_folder(tmp_path / "killed"))


def kill_while_training(
    process: subprocess.Popen[str], runs: Path, number: signal.Signals, seconds: float, ranks: int
) -> bool:
    """Wait for training to begin, then for `seconds`, then send the signal to the first rank (SIGKILL) or to all."""
    begun = time.time()
    training = wait_for(lambda: started_training(runs, begun), process)
    time.sleep(seconds)
    alive = training and process.poll() is None
    for pid in workers(process, ranks)[: 1 if number == signal.SIGKILL else None]:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            alive = False
    process.communicate(timeout=120)
    return alive and process.returncode != 0


def started_training(runs: Path, since: float) -> bool:
    logs = list(runs.glob("tiny/*/train.log"))
    return bool(logs) and logs[0].stat().st_mtime >= since


def workers(process: subprocess.Popen[str], ranks: int) -> list[int]:
    """The process ids of the ranks: torchrun's children, or the process itself."""
    if ranks == 1:
        return [process.pid]
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def assert_equal_runs(one: RunFolder, other: RunFolder) -> None:
    assert without_timing(one) == without_timing(other)
    files = [file.name() for file in wanted_files(one.result())]
    assert all((one.path / name).read_bytes() == (other.path / name).read_bytes() for name in files)
    a, b = (torch.load(folder.checkpoint_path) for folder in (one, other))
    assert a["model"].keys() == b["model"].keys()
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    ours, theirs = a["optimizer"]["state"], b["optimizer"]["state"]
    assert all(torch.equal(ours[i][key], theirs[i][key]) for i in ours for key in ours[i])


def without_timing(folder: RunFolder) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "timing"} for line in folder.history()]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_saves_logs_and_exits_with_its_code(tmp_path: Path, workers: int) -> None:
    arguments = (*SHORT, "data.train_images=160", f"data.cache={tmp_path / 'cache'}", f"runs={tmp_path}")
    process = start(*arguments, "checkpoint.minutes=60", f"data.workers={workers}")
    assert kill_while_training(process, tmp_path, signal.SIGTERM, 0.3, ranks=1)
    folder = only_folder(tmp_path)
    assert process.returncode == 128 + signal.SIGTERM
    assert folder.state()["state"] == "preempted"  # type: ignore[index]
    assert folder.checkpoint_path.exists()


def test_a_checkpoint_in_the_stored_layout_resumes_bit_equal(tmp_path: Path) -> None:
    """The layout of format 1, key by key: files written by earlier versions must stay readable."""
    arguments = (*SHORT, "data.train_images=160", f"data.cache={tmp_path / 'cache'}", "checkpoint.minutes=60")
    run_well(*arguments, f"runs={tmp_path / 'calm'}")
    process = start(*arguments, f"runs={tmp_path / 'killed'}")
    assert kill_while_training(process, tmp_path / "killed", signal.SIGTERM, 0.5, ranks=1)
    killed = only_folder(tmp_path / "killed")
    content = torch.load(killed.checkpoint_path)
    about = ["config", "categories", "category_ids", "data", "run"]
    assert list(content) == ["format", "model", "optimizer", "position", *about]
    assert content["format"] == 1
    position = content["position"]
    stored = {
        "format": 1,
        "model": dict(content["model"]),
        "optimizer": {key: content["optimizer"][key] for key in ("state", "param_groups")},
        "position": {
            "epoch": position["epoch"],
            "batches_done": position["batches_done"],
            "sums": position["sums"],
            "history": position["history"],
            "train_seconds": position["train_seconds"],
            "total_seconds": position["total_seconds"],
            "total_batch_size": 8,
            "starts": 1,
        },
    }
    assert list(position) == list(stored["position"])
    torch.save(stored, killed.checkpoint_path)
    assert "resumed after" in run_well(*arguments, f"runs={tmp_path / 'killed'}")
    assert_equal_runs(only_folder(tmp_path / "calm"), killed)
