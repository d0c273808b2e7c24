"""How a run in a SLURM job counts its starts and its nodes; on a real cluster: test_faults.py."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from fovea_detr.errors import NodeError, RunFolderError, UserError
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.stop import Stopped
from fovea_detr.study import slurm_host
from fovea_detr.study.job import gpus_asked, refuse_replaced
from fovea_detr.study.manifest import Submission
from fovea_detr.study.slurm_host import SlurmHost

USR2 = Stopped(signal.SIGUSR2)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of job 5 on node n1."""
    for name, value in {"SLURM_JOB_ID": "5", "SLURMD_NODENAME": "n1", "LOCAL_RANK": "0", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    return monkeypatch


def begin(path: Path, job: pytest.MonkeyPatch, restarts: int, host: SlurmHost | None = None) -> RunFolder:
    """A start of the job: it claims the folder and writes that it runs."""
    job.setenv("SLURM_RESTART_COUNT", str(restarts))
    folder = RunFolder(path)
    (host or SlurmHost()).begin(folder)
    folder.write_state("running")
    return folder


def test_two_starts_in_a_row_without_a_step_are_the_last(tmp_path: Path, job: pytest.MonkeyPatch) -> None:
    host = SlurmHost()
    assert host.why_not_again(begin(tmp_path, job, 0), USR2) == ""
    assert host.why_not_again(begin(tmp_path, job, 1), USR2).startswith("stopped by SIGUSR2, as 2 starts in a row")
    with pytest.raises(UserError, match="2 starts in a row have saved no step"):
        begin(tmp_path, job, 2)


def test_a_saved_step_another_job_or_a_damaged_record_begins_a_new_count(
    tmp_path: Path, job: pytest.MonkeyPatch
) -> None:
    host = SlurmHost()
    begin(tmp_path, job, 0)
    folder = begin(tmp_path, job, 1)
    folder.step_saved()
    assert host.why_not_again(folder, USR2) == ""
    assert folder.record()["start"] == {"job": "5", "restarts": 1}
    begin(tmp_path, job, 2)
    job.setenv("SLURM_JOB_ID", "6")
    assert begin(tmp_path, job, 0).idle_starts == 1
    (tmp_path / "state.json").write_text('{"state": ')
    assert begin(tmp_path, job, 1).idle_starts == 1


def test_no_more_restarts_than_allowed(tmp_path: Path, job: pytest.MonkeyPatch) -> None:
    host = SlurmHost()
    host.max_restarts = 1
    assert host.why_not_again(begin(tmp_path, job, 0, host), USR2) == ""
    folder = begin(tmp_path, job, 1, host)
    folder.step_saved()
    assert "cluster.max_restarts=1" in host.why_not_again(folder, USR2)
    with pytest.raises(UserError, match="this would be restart 2"):
        begin(tmp_path, job, 2, host)


def test_a_third_node_without_a_gpu_ends_the_run(tmp_path: Path, job: pytest.MonkeyPatch) -> None:
    """The first two are excluded. Without another node, the first one ends it."""
    excluded: list[str] = []
    job.setattr(slurm_host, "requeue_without", lambda node: excluded.append(node) or "requeued")
    job.setattr(slurm_host.time, "sleep", lambda _: None)
    job.setattr(slurm_host, "other_nodes", lambda _: True)
    for node in ("n1", "n2", "n3"):
        job.setenv("SLURMD_NODENAME", node)
        SlurmHost().leave_node(RunFolder(tmp_path), NodeError("no GPU"))
    assert excluded == ["n1", "n2"]
    assert RunFolder(tmp_path).record()["unfit_nodes"] == ["n1", "n2"]
    job.setattr(slurm_host, "other_nodes", lambda _: False)
    (tmp_path / "state.json").unlink()
    SlurmHost().leave_node(RunFolder(tmp_path), NodeError("no GPU"))
    assert excluded == ["n1", "n2"]


@pytest.mark.parametrize(
    ("resources", "asked"),
    [
        ({"gres": "gpu:4"}, "gres=gpu:4"),
        ({"gpus_per_node": 4}, "gpus_per_node=4"),
        ({"additional_parameters": {"gpus-per-task": 1}}, "gpus-per-task=1"),
        ({"gres": "disk:1"}, ""),
        ({"additional_parameters": None}, ""),
    ],
)
def test_what_counts_as_asking_for_a_gpu(resources: dict[str, object], asked: str) -> None:
    assert gpus_asked(resources) == asked


def test_a_job_whose_point_was_removed_or_submitted_again_ends(tmp_path: Path) -> None:
    submission = Submission(tmp_path / ".submissions" / "first", "study-first", ["point"], snapshot="/code")
    folder = RunFolder(tmp_path / "point")
    folder.write_state("queued", submission="first")
    refuse_replaced(folder, submission)
    folder.write_state("queued", submission="second")
    with pytest.raises(RunFolderError, match=r"submitted again since \(submission second\)"):
        refuse_replaced(folder, submission)
    folder.write_state("running")
    refuse_replaced(folder, submission)
    shutil.rmtree(folder.path)
    with pytest.raises(RunFolderError, match="removed or moved after its submission"):
        refuse_replaced(folder, submission)
