"""One rule for where a run stands: `study status`, launching and the table of the analysis give the same word."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.reading.folders import read_study
from fovea_detr.runs import clock
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.state import LOST_SECONDS, Job, standing_of
from fovea_detr.study import queue
from fovea_detr.study.folder import Study
from fovea_detr.study.manifest import Submission

START = {"start": {"job": "5_0", "restarts": 0}}


def silent(seconds: float, **details: object) -> Callable[[RunFolder], None]:
    def write_and_age(run: RunFolder) -> None:
        run.write_state("running", **details)
        written = time.time() - seconds
        os.utime(run.path / "state.json", (written, written))

    return write_and_age


def finished(run: RunFolder) -> None:
    run.write_state("done")
    run.write_result({"last": {"AP": 0.4}})


def write(name: str, text: str) -> Callable[[RunFolder], None]:
    def write_file(run: RunFolder) -> None:
        run.path.mkdir(parents=True)
        (run.path / name).write_text(text)

    return write_file


def failed_with_a_damaged_result(run: RunFolder) -> None:
    run.write_state("failed", reason="disk full")
    (run.path / "result.json").write_text('{"last": ')


def running_with_an_empty_result(run: RunFolder) -> None:
    run.write_state("running")
    (run.path / "result.json").touch()


FOLDERS: dict[str, tuple[str, Callable[[RunFolder], None]]] = {
    "finished": ("done", finished),
    "result_only": ("done", lambda run: run.write_result({})),
    "result_removed": ("broken", lambda run: run.write_state("done")),
    "damaged_result": ("failed", failed_with_a_damaged_result),
    "only_a_damaged_result": ("broken", write("result.json", "{")),
    "damaged_state": ("broken", write("state.json", "[1]")),
    "unknown_state": ("broken", write("state.json", '{"state": "dancing", "time": "noon"}')),
    "config_only": ("broken", write("config.yaml", "seed: 0\n")),
    "locked": ("starting", write(".lock", "")),
    "foreign": ("no run", write("holiday.jpg", "")),
    "empty": ("no run", lambda run: run.path.mkdir()),
    "queued": ("queued", lambda run: run.write_state("queued")),
    "failed": ("failed", lambda run: run.write_state("failed", reason="step 3: NaN")),
    "preempted": ("preempted", lambda run: run.write_state("preempted")),
    "running": ("running", silent(0)),
    "silent_for_7_minutes": ("running", silent(420)),
    "silent_for_11_minutes": ("lost", silent(660)),
    "silent_in_a_job": ("lost", silent(660, **START)),
    "by_a_clock_that_is_20_minutes_behind": ("running", silent(0, time=time.time() - 1200)),
    "by_a_clock_that_is_20_minutes_ahead": ("lost", silent(660, time=time.time() + 1200)),
    "empty_result": ("running", running_with_an_empty_result),
    "in_a_job_of_its_own": ("running", lambda run: run.write_state("running", **START)),
}


def test_status_and_the_table_say_the_same_word(tmp_path: Path) -> None:
    """Of folders that no sweep submitted: neither asks a queue."""
    study = Study(tmp_path)
    for point, (_, prepare) in FOLDERS.items():
        prepare(RunFolder(tmp_path / point))
    table = {run.path.name: run.standing for run in read_study(tmp_path)}
    status = {status.point: status.standing for status in study.current_states(list(FOLDERS))}
    assert {point: standing.word for point, standing in status.items()} == {p: word for p, (word, _) in FOLDERS.items()}
    assert {point: standing.word for point, standing in table.items()} == {p: word for p, (word, _) in FOLDERS.items()}
    assert all(table[point].reason == status[point].reason for point in FOLDERS if "damaged" not in point)


def test_of_a_submitted_point_both_say_the_same_word_while_its_job_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of a point whose folder was removed. Only the queue knows that a job has ended without a message."""
    points = ["queued", "running", "removed"]
    submission = Submission(tmp_path / ".submissions/id", "study-id", points, snapshot="/code")
    submission.record_intent()
    submission.record_job("5")
    RunFolder(tmp_path / "queued").write_state("queued", submission="id")
    RunFolder(tmp_path / "running").write_state("running", **START)
    known = (Job("5_0", "study-id", "PENDING"), Job("5_1", "study-id", "RUNNING"))
    jobs = {(job.name, job.id): job for job in known}
    monkeypatch.setattr(queue, "jobs", lambda *_: jobs)
    table = {run.path.name: run.standing.word for run in read_study(tmp_path)}
    status = {status.point: status.state for status in Study(tmp_path).current_states(points)}
    assert table == status == {"queued": "queued", "running": "running", "removed": "missing"}


def test_a_point_that_was_never_submitted_is_new(tmp_path: Path) -> None:
    (status,) = Study(tmp_path).current_states(["a"])
    assert (status.state, status.standing.needs_launch) == ("new", True)


@pytest.mark.parametrize(
    ("record", "seconds", "job", "word"),
    [
        (START, LOST_SECONDS + 60, Job("5_0", "", "RUNNING"), "running"),
        (START, LOST_SECONDS + 60, None, "lost"),
        (START, 0, None, "running"),
        (START, 0, Job("5_0", "", ""), "lost"),
        ({}, 0, Job("5_0", "", "CANCELLED"), "running"),
        ({}, LOST_SECONDS + 60, Job("5_0", "", "CANCELLED"), "lost"),
    ],
    ids=["live", "not_asked", "not_asked_fresh", "unknown_to_the_queue", "now_in_a_shell", "lost_in_a_shell"],
)
def test_the_queue_counts_more_than_the_heartbeat_of_a_job(
    tmp_path: Path, record: dict[str, object], seconds: float, job: Job | None, word: str
) -> None:
    run = RunFolder(tmp_path)
    silent(seconds, **record)(run)
    assert standing_of(tmp_path, run.record(), has_result=False, job=job).word == word


@pytest.mark.parametrize("skew", [1200, -1200])
@pytest.mark.parametrize(("seconds", "word"), [(0, "running"), (LOST_SECONDS + 60, "lost")])
def test_the_reader_s_clock_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skew: float, seconds: float, word: str
) -> None:
    """The file server's does: that of a file which is written there now."""
    run, real = RunFolder(tmp_path / "study" / "point"), time.time
    silent(seconds)(run)
    monkeypatch.setattr(clock.time, "time", lambda: real() + skew)
    assert standing_of(run.path, run.record(), has_result=False).word == word
    assert sorted(path.name for path in run.path.parent.iterdir()) == ["point"], "nothing is left behind"


def test_a_live_job_that_is_silent_is_called_so(tmp_path: Path) -> None:
    silent(LOST_SECONDS + 60, **START)(RunFolder(tmp_path))
    standing = standing_of(tmp_path, RunFolder(tmp_path).record(), has_result=False, job=Job("5_0", "", "RUNNING"))
    assert (standing.word, standing.reason) == ("running", "silent for 11 min")
