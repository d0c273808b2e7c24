"""Sweeps on a cluster without accounting that forgets jobs within seconds and takes arrays of at most four tasks."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fovea_detr.study import queue
from tests.study.conftest import CLUSTER, ClusterStudy
from tests.study.test_launch import equal, weights

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

HELD = "+cluster.extra.hold=true"
ONE = "schedule.epochs=1"


@pytest.fixture
def small(bare_cluster: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ClusterStudy]:
    queue.settings.cache_clear()
    study = ClusterStudy(tmp_path, request.node.originalname.removeprefix("test_")[:30], bare_cluster)
    yield study
    names = ",".join(submission.name for submission in study.submissions())
    study.slurm("scancel", "--name", names or "none")


def states(study: ClusterStudy) -> dict[str, tuple[str, str]]:
    """State and reason by the value of the seed, as `study status` prints them."""
    lines = study.verb("status").stdout.splitlines()[1:]
    rows = [line.split(None, 6) for line in lines if line.startswith(("seed=", "data."))]
    return {row[0].rpartition("seed=")[2]: (row[1], row[6] if len(row) > 6 else "") for row in rows}


def until(condition: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.3)


def test_what_was_cancelled_stays_cancelled_when_slurm_has_forgotten_it(small: ClusterStudy) -> None:
    done = small.sweep("seed=range(6)", HELD, gpus=1)
    assert "6 submitted" in done.stdout, done.stderr
    assert [len(submission.points) for submission in small.submissions()] == [4, 2], "MaxArraySize is 4"
    assert {s.cluster for s in small.submissions()} == {"fovea"}
    assert "nothing to submit: 6 queued" in small.sweep("seed=range(6)", HELD, gpus=1).stdout
    fewer = small.sweep("seed=range(5)", HELD, gpus=1).stdout
    assert "1 queued or running points were submitted before and are not in this command" in fewer
    assert small.verb("cancel", "seed=1", "seed=5").stdout.count("cancelled ") == 2
    assert {seed: state for seed, (state, _) in states(small).items()} == {
        **dict.fromkeys("0234", "queued"),
        **dict.fromkeys("15", "cancelled"),
    }
    small.verb("cancel")
    until(lambda: not small.slurm("squeue", "-h", "-t", "all"))
    assert states(small) == dict.fromkeys("012345", ("cancelled", "by root"))
    assert "nothing to launch again" in small.verb("relaunch").stdout
    table = subprocess.run(
        [small.sweep_command()[0], "analysis/collect.py", small.name, "--runs", str(small.runs)],
        cwd=small.code, env=small.environment, text=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert " cancelled  -" in table.stdout, table.stdout + table.stderr
    assert "queued" not in table.stdout


def test_a_job_that_cannot_start_has_a_reason_and_one_that_may_be_retried_ends(small: ClusterStudy) -> None:
    """The interpreter is missing; the first start fails; the code is copied to the node's disk."""
    small.sweep("seed=0", ONE, "cluster.python=/nowhere/python", gpus=1)
    flaky = "cluster.setup=['test $SLURM_RESTART_COUNT || exit 3']"
    retried = small.sweep("seed=1", ONE, flaky, "cluster.retries=1", "cluster.local_code=true", gpus=1)
    assert retried.returncode == 0, retried.stderr
    exits = ("cluster.setup=['exit 3']", "cluster.retries=1", "cluster.extra.requeue=false")
    failing = small.sweep("seed=2", ONE, *exits, gpus=1)
    assert failing.returncode == 0, failing.stderr
    until(lambda: not small.slurm("squeue", "-h"), 200)
    until(lambda: not small.slurm("squeue", "-h", "-t", "all"))
    found = states(small)
    assert found["0"][0] == "failed"
    assert "No such file or directory" in found["0"][1]
    assert found["1"][0] == "done", small.log()
    assert (small.folder(small.points()[1]).state() or {})["start"]["restarts"] == 1
    assert found["2"][0] == "failed"
    assert "exit code 3" in found["2"][1]
    assert not list(Path("/tmp").glob("fovea-[0-9]*")), "the copies on the nodes are removed"


def test_an_id_that_another_job_has_now_is_not_cancelled(small: ClusterStudy) -> None:
    small.sweep("seed=0", HELD, gpus=1)
    (mine,) = small.submissions()
    small.slurm("scancel", mine.job or "")
    restart_counting(small.environment)
    for _ in range(int(mine.job or 0) + 3):
        job = small.slurm(
            "sbatch", "--parsable", "--hold", "--array=0", "-J", "theirs", "-o", "/dev/null", "--wrap", "sleep 9"
        )
        if job.strip() == mine.job:
            break
    assert job.strip() == mine.job, "the controller counts anew"
    try:
        assert states(small)["0"][0] == "lost"
        refused = small.verb("cancel")
        assert refused.returncode == 2
        assert f"job {mine.job}_0 is now theirs of root" in refused.stderr
        assert small.slurm("squeue", "-h", "-j", job.strip(), "-o", "%T").strip() == "PENDING"
    finally:
        small.slurm("scancel", "--name", "theirs")


def restart_counting(environment: dict[str, str]) -> None:
    """As a controller does that has lost its state."""
    for verb in ("stop", "start"):
        subprocess.run(["bash", str(CLUSTER), verb, "slurmctld"], env=environment, check=True, timeout=60)
        if verb == "stop":
            for file in Path(environment["FOVEA_SLURM_DIR"], "spool/slurmctld").glob("job_state*"):
                file.unlink()


@pytest.mark.parametrize("same_code", [False, True], ids=["today's code", "same code"])
def test_a_moved_study_goes_on_where_it_lies(
    small: ClusterStudy, monkeypatch: pytest.MonkeyPatch, same_code: bool
) -> None:
    epochs = ("schedule.epochs=20", "evaluation.every=100")
    undisturbed = ClusterStudy(small.runs.parent, "undisturbed", small.environment)
    undisturbed.sweep(*epochs, gpus=1)
    small.sweep(*epochs, gpus=1)
    small.wait_for_epochs(3)
    assert small.verb("cancel").returncode == 0
    until(lambda: not small.slurm("squeue", "-h", "--name", small.submissions()[0].name))
    before = len(small.folder().history())
    moved = ClusterStudy(small.runs.parent / "elsewhere", f"{small.name}-2", small.environment)
    moved.runs.mkdir(parents=True)
    small.path.rename(moved.path)
    again = moved.verb("relaunch", moved.points()[0], *["--same-code"] * same_code)
    assert "1 submitted" in again.stdout, again.stderr
    until(lambda: moved.folder().has_result() and undisturbed.folder().has_result(), 240)
    monkeypatch.setenv("SLURM_CONF", small.environment["SLURM_CONF"])
    assert not small.path.exists(), "nothing is written where it was"
    assert "resumed after" in (moved.folder().path / "train.log").read_text()
    assert before >= 3
    assert equal(weights(moved), weights(undisturbed))
