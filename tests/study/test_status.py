"""Where a point stands, from its folder and from SLURM; SLURM counts where they disagree. The commands on a study."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.state import Job
from fovea_detr.study import __main__ as command
from fovea_detr.study import queue
from fovea_detr.study.folder import Study
from fovea_detr.study.manifest import Submission
from tests.launch import ROOT


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


def test_tail_of_a_rank_that_there_is_not_names_the_others(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = submitted(study, "a")
    monkeypatch.setattr(queue, "jobs", lambda *_: {})
    submission.folder.mkdir(parents=True)
    for rank in range(2):
        (submission.folder / f"5_0_{rank}_log.out").write_text("line\n")
    with pytest.raises(SystemExit, match="2"):
        verb(study, "tail", "a", "--rank", "5")
    assert capsys.readouterr().err == "error: a has no rank 5; there are logs of: 0, 1\n"


def test_what_was_cancelled_is_called_so_while_it_ends_and_ever_after(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = submitted(study, "a")
    submission.record_cancel(["a"])
    words = {"COMPLETING": "cancelled", "CANCELLED": "cancelled", "RUNNING": "running", "PENDING": "queued"}
    for state, word in words.items():  # RUNNING: the cancellation did not reach SLURM
        monkeypatch.setattr(queue, "jobs", lambda *_, state=state: known(Job("5_0", "study-id", state)))
        assert [s.state for s in study.current_states(["a"])] == [word]
    monkeypatch.setattr(queue, "jobs", lambda *_: {})
    assert [s.state for s in study.current_states(["a"])] == ["cancelled"]
    RunFolder(study.folder / "a").write_result({})
    assert [s.state for s in study.current_states(["a"])] == ["done"], "it ended before"


def test_the_exit_code_of_the_batch_script_counts_where_slurm_has_forgotten_the_job(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = submitted(study, "a")
    submission.folder.mkdir(parents=True)
    monkeypatch.setattr(queue, "jobs", lambda *_: {})
    assert [s.state for s in study.current_states(["a"])] == ["lost"]
    submission.exit_file("a").write_text("127\n")
    (found,) = study.current_states(["a"])
    assert (found.state, found.reason) == ("failed", "killed; no message was written; SLURM says FAILED, exit code 127")


def test_a_preempted_point_whose_next_start_has_failed_says_so(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(study, "a")
    RunFolder(study.folder / "a").write_state("preempted", reason="stopped by SIGTERM")
    jobs = known(Job("5_0", "study-id", "FAILED", "JobLaunchFailure"))
    monkeypatch.setattr(queue, "jobs", lambda *_: jobs)
    (found,) = study.current_states(["a"])
    assert found.reason == "stopped by SIGTERM; its job has ended: SLURM says FAILED, JobLaunchFailure"


def test_a_job_that_is_gone_after_a_requeue_is_not_said_to_be_cancelled_for_sure(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(study, "a")
    (gone,) = queue.parse_sacct("5_0|study-id|REQUEUED|0:0|ann")
    monkeypatch.setattr(queue, "jobs", lambda *_: known(gone))
    (found,) = study.current_states(["a"])
    assert (found.state, found.reason) == ("cancelled", "requeued, then cancelled or lost: SLURM does not tell which")


def test_a_submission_under_way_is_queued_for_readers(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    submission = Submission(study.folder / ".submissions/id", "study-id", ["a"], snapshot="/code", time=time.time())
    submission.record_intent()
    monkeypatch.setattr(queue, "jobs", lambda *_: {})
    (found,) = study.current_states(["a"])
    assert (found.state, found.reason) == ("queued", "being submitted")


def test_another_users_job_is_no_lost_one_where_slurm_hides_it(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    submission = Submission(study.folder / ".submissions/id", "study-id", ["a"], snapshot="/code", user="bob")
    submission.record_intent()
    submission.record_job("5")
    RunFolder(study.folder / "a").write_state("queued")
    monkeypatch.setattr(queue, "jobs", lambda *_: {})
    monkeypatch.setattr(queue, "settings", lambda: {"PrivateData": "accounts,jobs"})
    (found,) = study.current_states(["a"])
    assert (found.state, found.reason) == ("queued", "by bob")


# ---- ends of a command --------------------------------------------------------------------------------------------


def start_verb(study: Study, *arguments: str, path: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fovea_detr.study", arguments[0], study.folder.name, *arguments[1:]]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"} if path else None
    where = ["--runs", str(study.folder.parent)]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - a background shell's tests ignore it
    return subprocess.Popen(
        [*command, *where], cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env=environment, preexec_fn=heard
    )


def test_watching_survives_a_squeue_that_fails_and_ends_without_a_word(study: Study, tmp_path: Path) -> None:
    submitted(study, "a")
    for name, script in {"squeue": "echo down >&2; exit 1", "sacct": "exit 1", "scontrol": "exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    process = start_verb(study, "status", "--watch", path=tmp_path)
    assert process.stderr is not None
    assert "squeue: down; waiting" in process.stderr.readline()
    (tmp_path / "new").write_text("#!/bin/sh\necho '5_0|study-id|RUNNING|None|bob'\n")
    (tmp_path / "new").chmod(0o755)
    (tmp_path / "new").replace(tmp_path / "squeue")  # at once: it may be running
    assert process.stdout is not None
    assert "reason" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (130, "")


def test_a_reader_that_has_gone_is_no_traceback(study: Study) -> None:
    folder = RunFolder(study.folder / "a")
    folder.write_state("failed", reason="because")
    (folder.path / "train.log").write_text("word\n" * 10)
    process = start_verb(study, "tail", "a", "--follow")
    assert process.stdout is not None
    process.stdout.close()
    for _ in range(100):
        with (folder.path / "train.log").open("a") as file:
            file.write("more\n" * 1000)
        if process.poll() is not None:
            break
        time.sleep(0.1)
    assert process.stderr is not None
    assert (process.wait(20), process.stderr.read()) == (141, "")
