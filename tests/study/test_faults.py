"""Faults of a job on a real SLURM: the state that SLURM reports, the state that we report, and the steps lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.last_error import last_error
from tests.study.conftest import CLUSTER, FAULTS, ClusterStudy
from tests.study.test_launch import equal, weights

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

EPOCHS = ("schedule.epochs=20", "evaluation.every=100")
ENDLESS = ("schedule.epochs=2000", "evaluation.every=2000")


def inject(fault: str, rank: int) -> str:
    """The override that makes a rank of the job fail (tests/study/faults)."""
    line = f"export FAULT={fault} FAULT_RANK={rank} FAULT_STEP=20 PYTHONPATH={FAULTS}"
    return f"cluster.setup=['{line}']"


def job(study: ClusterStudy) -> str:
    return study.submissions()[-1].job_of(study.points()[0]) or ""


def process_of(study: ClusterStudy, rank: int) -> int:
    """The pid of a rank of the study's job."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().split("\0")
            variables = (process / "environ").read_text().split("\0")
        except OSError:
            continue
        ours = "fovea_detr.study.job" in words and "srun" not in words[0] and str(study.path) in words[-2]
        if ours and f"SLURM_PROCID={rank}" in variables:
            return int(process.name)
    raise AssertionError(f"no process of rank {rank}")


# ---- faults that end a run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((inject("raise", 2), "cluster.gpus=4"), "injected failure"),
        (("schedule.lr=1e8", "schedule.usual_lr=1e8", "schedule.clip=0", "schedule.warmup=0"), "not finite"),
        ((inject("memory", 1), "cluster.mem_gb=1.5"), "memory"),
    ],
    ids=["raise", "nan", "memory"],
)
def test_failure_is_a_failure(
    study: ClusterStudy, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], words: str
) -> None:
    assert study.sweep(*EPOCHS, *overrides).returncode == 0
    (status,) = study.wait(monkeypatch).values()
    assert (status.state, status.slurm) == ("failed", "FAILED"), study.log()
    assert words in status.reason
    assert (study.folder().state() or {})["start"]["restarts"] == 0, "never requeued"


def test_killed_rank_is_named_as_lost_and_a_relaunch_ends_the_run(
    study: ClusterStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert study.sweep(*EPOCHS).returncode == 0
    study.wait_for_epochs(2)
    os.kill(process_of(study, 1), signal.SIGKILL)
    begin = time.monotonic()
    (status,) = study.wait(monkeypatch).values()
    assert time.monotonic() - begin < 60
    assert (status.state, status.slurm) == ("failed", "FAILED")
    assert status.reason.startswith("rank lost")
    assert "1 submitted" in study.verb("relaunch").stdout
    (status,) = study.wait(monkeypatch).values()
    assert status.state == "done", study.log()


# ---- faults that a run survives ----------------------------------------------------------------------------------


# Steps repeated: none where a signal precedes the end; else those since the last checkpoint, here the end of an epoch
# (16 steps).
MOST_LOST = {"requeue": 0, "warn": 0, "terminate": 0, "preempt": 0, "node_down": 16, "restart_slurmctld": 0}


def requeue(study: ClusterStudy) -> None:
    study.slurm("scontrol", "requeue", job(study))


def warn(study: ClusterStudy) -> None:
    study.slurm("scancel", "--signal=USR2", "--full", job(study))


def terminate(study: ClusterStudy) -> None:
    study.slurm("scancel", "--signal=TERM", job(study))


def preempt(study: ClusterStudy) -> None:
    node = study.slurm("squeue", "-h", "-j", job(study), "-o", "%N").strip()
    study.slurm("sbatch", "-p", "urgent", "-w", node, "--mem=18000", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 1")


def node_down(study: ClusterStudy) -> None:
    node = study.slurm("squeue", "-h", "-j", job(study), "-o", "%N").strip()
    study.slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    time.sleep(1)
    study.slurm("scontrol", "update", f"nodename={node}", "state=resume")


def restart_slurmctld(study: ClusterStudy) -> None:
    time.sleep(8)  # a controller that is killed within seconds of a job's start forgets the start
    subprocess.run(["bash", str(CLUSTER), "restart", "slurmctld"], env=study.environment, check=True, timeout=60)


@pytest.fixture(scope="module")
def undisturbed(cluster: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same run without a fault."""
    study = ClusterStudy(tmp_path_factory.mktemp("undisturbed"), "undisturbed", cluster)
    assert study.sweep(*EPOCHS).returncode == 0
    with pytest.MonkeyPatch.context() as patch:
        assert [s.state for s in study.wait(patch).values()] == ["done"], study.log()
    return study.folder()


@pytest.mark.parametrize("fault", [requeue, warn, terminate, preempt, node_down, restart_slurmctld])
def test_survived(
    study: ClusterStudy, monkeypatch: pytest.MonkeyPatch, undisturbed: RunFolder, fault: Callable[[ClusterStudy], None]
) -> None:
    steps = study.runs.parent / "steps"
    count = f"export FAULT=count FAULT_RANK=0 FAULT_FILE={steps} PYTHONPATH={FAULTS}"
    assert study.sweep(*EPOCHS, f"cluster.setup=['{count}']").returncode == 0
    study.wait_for_epochs(2)
    fault(study)
    (status,) = study.wait(monkeypatch).values()
    assert status.state == "done", study.log()
    lost = steps.stat().st_size - (undisturbed.result() or {})["steps"]
    print(f"{fault.__name__}: {lost} steps lost")
    assert 0 <= lost <= MOST_LOST[fault.__name__], study.log()
    assert study.accounts()[status.job].state == "COMPLETED"
    assert (study.folder().state() or {})["start"]["restarts"] == (0 if fault is restart_slurmctld else 1)
    assert equal(weights(study), weights_of(undisturbed))


def weights_of(folder: RunFolder) -> dict:
    import torch

    return torch.load(folder.checkpoint_path, weights_only=False)["model"]


def test_time_limit_of_a_minute(study: ClusterStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert study.sweep(*ENDLESS, "cluster.hours=0.0167", "cluster.signal_minutes=0.5").returncode == 0
    study.wait_for_epochs(1)
    end = time.monotonic() + 150
    while ((study.folder().state() or {}).get("start") or {}).get("restarts", 0) < 1:
        assert time.monotonic() < end, study.log()
        time.sleep(0.5)
    assert "requeued" in study.log()
    assert study.verb("cancel").returncode == 0
    (status,) = study.wait(monkeypatch).values()
    assert status.state == "cancelled"


def test_scancel_is_not_requeued_and_loses_nothing(study: ClusterStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert study.sweep(*ENDLESS).returncode == 0
    study.wait_for_epochs(2)
    study.slurm("scancel", job(study))
    (status,) = study.wait(monkeypatch).values()
    assert (status.state, status.slurm) == ("cancelled", "CANCELLED")
    assert (study.folder().state() or {})["state"] == "preempted", "it has saved what it had"
    assert "nothing to launch again" in study.verb("relaunch").stdout, "cancelled on purpose"


def test_a_stopped_rank_is_named(study: ClusterStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert study.sweep(*ENDLESS, "cluster.stall_minutes=0.2").returncode == 0
    study.wait_for_epochs(1)
    os.kill(process_of(study, 1), signal.SIGSTOP)
    (status,) = study.wait(monkeypatch, seconds=90).values()
    assert (status.state, status.slurm) == ("failed", "FAILED"), study.log()
    assert status.reason.startswith("rank 1 has been silent for 0.2")


def test_starts_that_save_no_step_end_the_run(study: ClusterStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"export FAULT=slow FAULT_RANK=0 PYTHONPATH={FAULTS}"
    assert study.sweep(*ENDLESS, f"cluster.setup=['{line}']", gpus=1).returncode == 0
    for restarts in range(2):
        wait_for_start(study, restarts)
        warn(study)
    (status,) = study.wait(monkeypatch).values()
    assert (status.state, status.slurm) == ("failed", "FAILED"), study.log()
    assert "2 starts in a row before they had saved a step; give it more time" in status.reason
    assert study.folder().record()["start"] == {"job": status.job, "restarts": 1, "idle": 2}


def test_restarts_are_limited(study: ClusterStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher's limit goes before the cluster's (which is a test of test_slurm_host.py)."""
    limits = ("hydra.launcher.max_num_timeout=1", "cluster.max_restarts=9")
    assert study.sweep(*ENDLESS, *limits, gpus=1).returncode == 0
    for restarts in range(2):
        wait_for_start(study, restarts)
        warn(study)
    (status,) = study.wait(monkeypatch).values()
    assert (status.state, status.slurm) == ("failed", "FAILED"), study.log()
    assert status.reason.startswith("stopped by SIGUSR2, and cluster.max_restarts=1"), status.reason
    assert study.folder().record()["start"]["restarts"] == 1


def wait_for_start(study: ClusterStudy, restarts: int) -> None:
    """Until the only point trains, after that many restarts."""
    end = time.monotonic() + 180
    while True:
        record = study.folder().record()
        if record.get("state") == "running" and record["start"]["restarts"] == restarts:
            log = study.folder().path / "train.log"
            if log.exists() and log.read_text().count("worst batch") > restarts:
                return
        assert time.monotonic() < end, study.log()
        time.sleep(0.2)


def test_nodes_without_a_gpu_are_excluded_one_after_another(
    study: ClusterStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPUs of these nodes are fiction, which torch cannot see."""
    assert study.sweep("device=auto").returncode == 0
    (status,) = study.wait(monkeypatch).values()
    assert (status.state, status.slurm) == ("failed", "FAILED"), study.log()
    assert "the job asked for gres=gpu:2, but torch" in status.reason
    assert "requeued without fovea" in study.log()
    record = study.folder().record()
    assert record["start"]["restarts"] == 1
    excluded = study.slurm("sacct", "-n", "-X", "-D", "-j", status.job, "-o", "NodeList").split()
    assert sorted(set(excluded)) == ["fovea0", "fovea1"], "the next start was on the other node"


def test_a_removed_folder_ends_its_job_and_is_not_created_again(
    study: ClusterStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert study.sweep(*ENDLESS).returncode == 0
    study.wait_for_epochs(1)
    path = study.folder().path
    while path.exists():  # the run writes and renames files in it meanwhile
        shutil.rmtree(path, ignore_errors=True)
    (status,) = study.wait(monkeypatch, seconds=120).values()
    assert status.slurm == "FAILED", study.log()
    assert not path.exists()
    assert "stops and writes nothing more" in last_error(status.submission.log_files(status.point))  # type: ignore[union-attr]
