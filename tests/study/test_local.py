"""`hydra/launcher=submitit_local`: the same sweep on this machine, without SLURM."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fovea_detr.runs.folder import RunFolder
from fovea_detr.study import __main__ as command
from fovea_detr.study.folder import Study
from tests.launch import ENVIRONMENT, run, run_well

pytestmark = pytest.mark.slow


def sweep(runs: Path, *overrides: str) -> tuple[str, ...]:
    small = ("experiment=tiny", "schedule.epochs=1", "data.train_images=32", "data.val_images=8", f"runs={runs}")
    local = ("hydra/launcher=submitit_local", "hydra.launcher.wait=true", "device=cpu")
    return ("-m", *small, *local, f"data.cache={runs / 'cache'}", "study=local", *overrides)


def test_points_run_one_after_another_and_are_skipped_when_done(tmp_path: Path) -> None:
    run_well(*sweep(tmp_path, "seed=0,1", "hydra.launcher.tasks_per_node=2"))
    folders = [RunFolder(path) for path in (tmp_path / "local").glob("*seed=*")]
    assert len(folders) == 2
    assert [(folder.result() or {})["world_size"] for folder in folders] == [2, 2]
    assert "nothing to submit: 2 done" in run_well(*sweep(tmp_path, "seed=0,1"))


def test_points_at_a_time_on_a_gpu_each_cancelled_by_name_and_launched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`CUDA_VISIBLE_DEVICES` of a machine with two GPUs, which the runs, on the CPU in truth, only print."""
    monkeypatch.setitem(ENVIRONMENT, "CUDA_VISIBLE_DEVICES", "4,7")
    (tmp_path / "sitecustomize.py").write_text("import os; print('GPUs', os.environ.get('CUDA_VISIBLE_DEVICES'))\n")
    long = [word for word in sweep(tmp_path, "seed=0,1,2", "schedule.epochs=60") if "wait" not in word]
    long = [word for word in long if word not in ("device=cpu", "schedule.epochs=1")]
    setup = f"cluster.setup=['export PYTHONPATH={tmp_path}']"
    run_well(*long, "device=auto", "hydra.launcher.parallel=2", setup)
    study = Study(tmp_path / "local")
    first, second, third = study.points()
    wait(lambda: states(study) == ["running", "running", "queued"])
    (submission,) = study.submissions()
    logs = [submission.log_files(point)[0].read_text() for point in (first, second)]
    assert sorted(log.splitlines()[0] for log in logs) == ["GPUs 4", "GPUs 7"]
    study_verb(study, "cancel", "seed=1")
    wait(lambda: states(study) == ["running", "cancelled", "running"])  # the slot is free for the third
    assert (RunFolder(study.folder / second).state() or {})["state"] == "preempted", "it has saved"
    study_verb(study, "relaunch", "seed=1")
    wait(lambda: states(study) == ["running", "running", "running"])
    study_verb(study, "cancel")
    assert states(study) == ["cancelled"] * 3
    assert third in study.points()


def states(study: Study) -> list[str]:
    return [status.state for status in study.current_states(study.points())]


def study_verb(study: Study, verb: str, *points: str) -> None:
    command.main([verb, study.folder.name, *points, "--runs", str(study.folder.parent)])


def wait(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_failed_point_fails_the_wait_and_the_others_run(tmp_path: Path) -> None:
    done = run(
        *sweep(tmp_path, "schedule.usual_lr=1e8", "schedule.clip=0", "schedule.warmup=0", "schedule.lr=1e8,1e-3")
    )
    assert done.returncode == 1, done.stderr
    states = {path.name: (RunFolder(path).state() or {})["state"] for path in (tmp_path / "local").glob("*lr=*")}
    assert sorted(states.values()) == ["done", "failed"], states
