"""Where a point stands, from its folder and from SLURM; SLURM is believed where they disagree."""

from __future__ import annotations

from pathlib import Path

import pytest

from fovea_detr.runs.folder import RunFolder
from fovea_detr.study import __main__ as study
from fovea_detr.study import queue, status
from fovea_detr.study.manifest import Manifest, Submission


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    found = Manifest(tmp_path / "study")
    found.folder.mkdir()
    return found


def submitted(manifest: Manifest, *points: str) -> Submission:
    submission = Submission(id="id", name="study-id", points=list(points), snapshot="/code")
    manifest.will_submit(submission)
    manifest.was_submitted(submission, "5")
    for point in points:
        RunFolder(manifest.folder / point).write_state("queued", submission="id")
    return submission


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
        ("done", "COMPLETED", "new", True),  # its result was removed
    ],
)
def test_a_point_without_a_result(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, state: str, slurm: str | None, words: str, is_open: bool
) -> None:
    submitted(manifest, "a")
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    RunFolder(manifest.folder / "a").write_state(state, reason="because")
    jobs = {} if slurm is None else {"5_0": queue.Job("5_0", "study-id", slurm)}
    monkeypatch.setattr(queue, "jobs", lambda *_: jobs)
    (found,) = status.standings(manifest, ["a"], manifest.read())
    assert (found.state, found.is_open, found.job) == (words, is_open, "5_0")


def test_done_needs_no_slurm(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(manifest, "a")
    RunFolder(manifest.folder / "a").write_result({})
    monkeypatch.setattr(queue, "command", lambda *_, **__: pytest.fail("SLURM was asked"))
    assert [s.state for s in status.standings(manifest, ["a"], manifest.read())] == ["done"]


def test_a_run_from_the_shell_is_left_alone(manifest: Manifest) -> None:
    RunFolder(manifest.folder / "a").write_state("running")
    (found,) = status.standings(manifest, ["a"], [])
    assert (found.state, found.reason) == ("running", "outside SLURM")


def test_memory_is_named(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    submission = submitted(manifest, "a")
    log = manifest.submission_folder(submission.id) / "5_0_0_log.out"
    log.parent.mkdir(parents=True)
    log.write_text("slurmstepd: error: Exceeded job memory limit\n")
    monkeypatch.setattr(queue, "jobs", lambda *_: {"5_0": queue.Job("5_0", "", "FAILED", "exit code 9:0")})
    (found,) = status.standings(manifest, ["a"], manifest.read())
    assert found.reason == "killed without a word; SLURM says FAILED, exit code 9:0, Exceeded job memory limit"


# ---- the verbs ---------------------------------------------------------------------------------------------------


def verb(manifest: Manifest, *arguments: str) -> None:
    study.main([arguments[0], manifest.folder.name, *arguments[1:], "--runs", str(manifest.folder.parent)])


def test_status_is_a_table(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(manifest, "seed=0", "seed=1")
    RunFolder(manifest.folder / "seed=1").write_state("failed", reason="step 3: NaN\nmore")
    jobs = {f"5_{n}": queue.Job(f"5_{n}", "", state) for n, state in enumerate(["RUNNING", "FAILED"])}
    monkeypatch.setattr(queue, "jobs", lambda *_: jobs)
    verb(manifest, "status")
    head, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["point", "state", "slurm", "job", "epoch", "restarts", "reason"]
    assert first == ["seed=0", "running", "RUNNING", "5_0", "-", "0"]
    assert second == ["seed=1", "failed", "FAILED", "5_1", "-", "0", "step", "3:", "NaN"]


def test_cancel_by_pattern(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(manifest, "seed=0", "seed=1", "seed=11")
    asked: list[list[str]] = []
    monkeypatch.setattr(queue, "jobs", lambda *_: {f"5_{n}": queue.Job(f"5_{n}", "", "PENDING") for n in range(3)})
    monkeypatch.setattr(queue, "command", lambda arguments: asked.append(list(arguments)))
    verb(manifest, "cancel", "seed=1*")
    assert asked == [["scancel", "5_1", "5_2"]]


@pytest.mark.parametrize("arguments", [("status", "nothing*"), ("cancel",), ("tail", "a")])
def test_what_cannot_be_is_one_line(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    submitted(manifest, "a")
    monkeypatch.setattr(queue, "jobs", lambda *_: {})
    with pytest.raises(SystemExit, match="2"):
        verb(manifest, *arguments)
    assert capsys.readouterr().err.startswith("error: ")
