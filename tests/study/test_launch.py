"""Sweeps on a real SLURM, as a user types them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from fovea_detr.study import snapshot
from tests.study.conftest import ROOT, ClusterStudy

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

TYPES = "dynamic_scale=type1,type2,type3,type4"
TWO_EPOCHS = "schedule.epochs=2"


def weights(study: ClusterStudy, point: str | None = None) -> dict[str, torch.Tensor]:
    return torch.load(study.folder(point).checkpoint_path, weights_only=False)["model"]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_sweep_of_four_jobs_of_two_ranks(study: ClusterStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    first = study.sweep(TYPES, TWO_EPOCHS)
    assert first.returncode == 0, first.stderr
    assert time.monotonic() - begin < 15
    assert first.stdout.count("submitted  job") == 4
    assert "Warning" not in first.stderr

    states = study.wait(monkeypatch)
    assert [status.state for status in states.values()] == ["done"] * 4, study.log()
    for point, status in states.items():
        folder = study.folder(point)
        files = {path.name for path in folder.path.iterdir()}
        assert {
            "config.yaml",
            "provenance.json",
            "state.json",
            "history.jsonl",
            "checkpoint.pt",
            "result.json",
        } <= files
        assert study.accounts()[status.job].state == "COMPLETED"
        assert (folder.result() or {})["world_size"] == 2
        assert (folder.provenance() or {})["code"]["sha"]

    begin = time.monotonic()
    second = study.sweep(TYPES, TWO_EPOCHS)
    assert second.returncode == 0
    assert time.monotonic() - begin < 10
    assert "nothing to submit: 4 done" in second.stdout
    assert len(study.submissions()) == 1

    gone = next(point for point in states if "type3" in point)
    (study.folder(gone).path / "result.json").unlink()
    third = study.sweep(TYPES, TWO_EPOCHS)
    assert "3 done, 1 submitted" in third.stdout
    assert study.submissions()[-1].points == [gone]
    assert study.wait(monkeypatch)[gone].state == "done"


def test_queued_jobs_run_the_code_of_their_submission(
    cluster: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "code"
    for name in snapshot.listed(ROOT):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, code / name, follow_symlinks=False)
    environment = {**cluster, "PYTHONPATH": str(code)}
    held = ClusterStudy(tmp_path / "held", "held", environment, code)
    plain = ClusterStudy(tmp_path / "plain", "plain", environment, code)
    assert plain.sweep(TWO_EPOCHS).returncode == 0
    assert held.sweep(TWO_EPOCHS, "+cluster.extra.hold=true").returncode == 0
    schedule = code / "conf/schedule/tiny.yaml"
    schedule.write_text(schedule.read_text().replace("lr: 1.5e-3", "lr: 1.0e-6"))
    (code / "fovea_detr/training/loop.py").write_text("raise RuntimeError('edited while it was queued')\n")
    [status] = held.states(monkeypatch)
    assert re.fullmatch(r"JobHeldUser, `scontrol release \d+_0` lets it go on", status.reason)
    held.slurm("scontrol", "release", held.submissions()[0].job or "")
    for study in (plain, held):
        assert [s.state for s in study.wait(monkeypatch).values()] == ["done"], study.log()
    assert equal(weights(plain), weights(held))


SLOW_SBATCH = """#!/bin/sh
echo begun > {begun}
sleep 3
exec {sbatch} "$@"
"""


@pytest.mark.parametrize("whole_shell", [False, True], ids=["python", "shell"])
def test_login_shell_killed_while_it_submits(
    study: ClusterStudy, monkeypatch: pytest.MonkeyPatch, whole_shell: bool
) -> None:
    """During sbatch. sbatch survives and its job is adopted, or it is killed, too, and the job is submitted again."""
    begun, slow = study.runs.parent / "begun", study.runs.parent / "bin" / "sbatch"
    slow.parent.mkdir(parents=True)
    slow.write_text(SLOW_SBATCH.format(begun=begun, sbatch=shutil.which("sbatch")))
    slow.chmod(0o755)
    quick = study.environment
    study.environment = {**quick, "PATH": f"{slow.parent}:{quick['PATH']}"}
    process = study.start_sweep(TWO_EPOCHS)
    while not begun.exists():
        assert process.poll() is None
        time.sleep(0.02)
    kill = os.killpg if whole_shell else os.kill
    kill(process.pid, signal.SIGKILL)
    process.communicate()
    study.environment = quick
    again = study.sweep(TWO_EPOCHS)
    assert again.returncode == 0, again.stderr
    assert ("1 submitted" if whole_shell else "nothing to submit") in again.stdout
    assert ('"adopted": true' in study.manifest.read_text()) == (not whole_shell)
    assert [s.state for s in study.wait(monkeypatch).values()] == ["done"], study.log()
    names = ",".join(submission.name for submission in study.submissions())
    jobs = study.slurm("sacct", "-n", "-P", "-X", "--name", names, "-o", "JobID").split()
    assert len(jobs) == 1, "one job, whichever process was killed"


def test_wait_exits_with_1_if_a_point_fails(study: ClusterStudy) -> None:
    well = study.sweep(TWO_EPOCHS, "hydra.launcher.wait=true")
    assert well.returncode == 0, well.stderr
    assert "done" in well.stdout
    ill = study.sweep(TWO_EPOCHS, "seed=1", "hydra.launcher.wait=true", "cluster.setup=['exit 3']")
    assert ill.returncode == 1
    assert "failed" in ill.stdout


def test_two_nodes_are_one_run(study: ClusterStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert study.sweep(TWO_EPOCHS, "cluster.nodes=2").returncode == 0
    assert [s.state for s in study.wait(monkeypatch).values()] == ["done"], study.log()
    assert (study.folder().result() or {})["world_size"] == 4
