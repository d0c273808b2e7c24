"""`hydra/launcher=submitit_local`: the same sweep on this machine, without SLURM."""

from __future__ import annotations

from pathlib import Path

import pytest

from fovea_detr.runs.folder import RunFolder
from tests.launch import run, run_well

pytestmark = pytest.mark.slow


def sweep(runs: Path, *overrides: str) -> tuple[str, ...]:
    small = ("experiment=tiny", "schedule.epochs=1", "data.train_images=32", "data.val_images=8", f"runs={runs}")
    local = ("hydra/launcher=submitit_local", "hydra.launcher.wait=true", "cluster.gpus=2", "device=cpu")
    return ("-m", *small, *local, f"data.cache={runs / 'cache'}", "study=local", *overrides)


def test_points_run_one_after_another_and_are_skipped_when_done(tmp_path: Path) -> None:
    run_well(*sweep(tmp_path, "seed=0,1"))
    folders = [RunFolder(path) for path in (tmp_path / "local").glob("*seed=*")]
    assert len(folders) == 2
    assert [(folder.result() or {})["world_size"] for folder in folders] == [2, 2]
    assert "nothing to submit: 2 done" in run_well(*sweep(tmp_path, "seed=0,1"))


def test_a_failed_point_fails_the_wait_and_the_others_run(tmp_path: Path) -> None:
    done = run(
        *sweep(tmp_path, "schedule.usual_lr=1e8", "schedule.clip=0", "schedule.warmup=0", "schedule.lr=1e8,1e-3")
    )
    assert done.returncode == 1, done.stderr
    states = {path.name: (RunFolder(path).state() or {})["state"] for path in (tmp_path / "local").glob("*lr=*")}
    assert sorted(states.values()) == ["done", "failed"], states
