"""Where a point stands, from its folder and from SLURM; SLURM counts where they disagree. The commands on a study."""

from __future__ import annotations

from pathlib import Path

import pytest

from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.state import Job
from fovea_detr.study import __main__ as command
from fovea_detr.study import queue
from fovea_detr.study.folder import Study
from fovea_detr.study.manifest import Submission


@pytest.fixture
def study(tmp_path: Path) -> Study:
    found = Study(tmp_path / "study")
    found.folder.mkdir()
    return found


def submitted(study: Study, *points: str) -> Submission:
    submission = Submission(study.folder / ".submissions/id", "study-id", list(points), snapshot="/code")
    submission.record_intent()
    submission.record_job("5")
    for point in points:
        RunFolder(study.folder / point).write_state("queued", submission="id")
    return submission


def known(*jobs: Job) -> dict[tuple[str, str], Job]:
    """What `queue.jobs` returns."""
    return {(job.name, job.id): job for job in jobs}


@pytest.mark.parametrize(
    ("state", "slurm", "words", "is_open"),
    [
        ("queued", "PENDING", "queued", False),
        ("queued", "REQUEUE_HOLD", "queued", False),
        ("running", "RUNNING", "running", False),
        ("running", "COMPLETING", "running", False),
        ("preempted", "PENDING", "queued", False),
        ("preempted", "RUNNING", "running", False),
        ("preempted", "TIMEOUT", "preempted", True),
        ("preempted", "CANCELLED", "cancelled", True),
        ("running", "CANCELLED", "cancelled", True),
        ("failed", "FAILED", "failed", True),
        ("failed", "CANCELLED", "failed", True),
        ("running", "FAILED", "failed", True),
        ("running", "OUT_OF_MEMORY", "failed", True),
        ("running", "NODE_FAIL", "lost", True),
        ("queued", "TIMEOUT", "lost", True),
        ("running", None, "lost", True),
        ("done", "COMPLETED", "broken", True),  # its result was removed
    ],
)
def test_a_point_without_a_result(
    study: Study, monkeypatch: pytest.MonkeyPatch, state: str, slurm: str | None, words: str, is_open: bool
) -> None:
    submitted(study, "a")
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    RunFolder(study.folder / "a").write_state(state, reason="because")
    jobs = {} if slurm is None else known(Job("5_0", "study-id", slurm))
    monkeypatch.setattr(queue, "jobs", lambda *_: jobs)
    (found,) = study.current_states(["a"])
    assert (found.state, found.standing.needs_launch, found.job) == (words, is_open, "5_0")


def test_done_needs_no_slurm(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(study, "a")
    RunFolder(study.folder / "a").write_result({})
    monkeypatch.setattr(queue, "command", lambda *_, **__: pytest.fail("SLURM was asked"))
    assert [s.state for s in study.current_states(["a"])] == ["done"]


def test_a_run_from_the_shell_is_left_alone(study: Study) -> None:
    RunFolder(study.folder / "a").write_state("running")
    (found,) = study.current_states(["a"])
    assert (found.state, found.reason) == ("running", "outside SLURM")


def test_memory_is_named(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    submission = submitted(study, "a")
    log = submission.folder / "5_0_0_log.out"
    log.parent.mkdir(parents=True)
    log.write_text("slurmstepd: error: Exceeded job memory limit\n")
    monkeypatch.setattr(queue, "jobs", lambda *_: known(Job("5_0", "study-id", "FAILED", "exit code 9:0")))
    (found,) = study.current_states(["a"])
    assert found.reason == "Exceeded job memory limit (SLURM says FAILED, exit code 9:0)"


# ---- the commands -----------------------------------------------------------------------------------------------


def verb(study: Study, *arguments: str) -> None:
    command.main([arguments[0], study.folder.name, *arguments[1:], "--runs", str(study.folder.parent)])


def test_status_is_a_table(study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(study, "seed=0", "seed=1")
    RunFolder(study.folder / "seed=1").write_state("failed", reason="step 3: NaN\nmore")
    jobs = known(*(Job(f"5_{n}", "study-id", state) for n, state in enumerate(["RUNNING", "FAILED"])))
    monkeypatch.setattr(queue, "jobs", lambda *_: jobs)
    verb(study, "status")
    head, first, second, counts = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["point", "state", "slurm", "job", "epoch", "restarts", "reason"]
    assert first == ["seed=0", "running", "RUNNING", "5_0", "-", "0"]
    assert second == ["seed=1", "failed", "FAILED", "5_1", "-", "0", "step", "3:", "NaN"]
    assert counts == [f"{study.folder}:", "1", "running,", "1", "failed"]


def test_cancel_by_pattern(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(study, "seed=0", "seed=1", "seed=11")
    asked: list[list[str]] = []
    monkeypatch.setattr(queue, "jobs", lambda *_: known(*(Job(f"5_{n}", "study-id", "PENDING") for n in range(3))))
    monkeypatch.setattr(queue, "command", lambda arguments: asked.append(list(arguments)))
    verb(study, "cancel", "seed=1*")
    assert asked == [["scancel", "5_1", "5_2"]]


@pytest.mark.parametrize("arguments", [("status", "nothing*"), ("cancel",), ("tail", "a")])
def test_an_invalid_command_is_one_line(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    submitted(study, "a")
    monkeypatch.setattr(queue, "jobs", lambda *_: {})
    with pytest.raises(SystemExit, match="2"):
        verb(study, *arguments)
    assert capsys.readouterr().err.startswith("error: ")
