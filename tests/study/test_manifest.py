"""The record of submissions, after a crash at any moment."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from fovea_detr.runs.state import Job
from fovea_detr.study import queue
from fovea_detr.study.folder import Study
from fovea_detr.study.manifest import Submission, job_name


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path / "study")


def submit(study: Study, *points: str) -> Submission:
    id_ = secrets.token_hex(6)
    folder = study.folder / ".submissions" / id_
    submission = Submission(folder, job_name("study", id_), list(points), snapshot="/code", time=1.0)
    with study.locked():
        submission.record_intent()
    return submission


def answer(monkeypatch: pytest.MonkeyPatch, *jobs: Job) -> None:
    monkeypatch.setattr(queue, "jobs", lambda *_: {(job.name, job.id): job for job in jobs})


def test_round_trip(study: Study) -> None:
    assert study.submissions() == []
    first = submit(study, "a", "b")
    first.record_job("12")
    second = submit(study, "c")
    second.record_refusal("no such partition")
    assert study.submissions() == [first, second]
    assert (first.job_of("b"), second.job_of("c")) == ("12_1", None)
    assert first.config_file("b").name == "1.yaml"


def test_crash_after_sbatch_is_found_by_name(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = submit(study, "a", "b")
    answer(monkeypatch, Job("7_1", lost.name, "RUNNING"))
    study.adopt(submissions := study.submissions(), write=False)
    assert submissions[0].job == "7"
    assert study.submissions()[0].job is None, "a reader changes nothing"
    study.adopt(study.submissions(), write=True)
    assert study.submissions()[0].job == "7"


def test_crash_before_sbatch_is_recorded_as_never_sent(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(study, "a")
    answer(monkeypatch)
    study.adopt(study.submissions(), write=True)
    assert "never sent" in (study.submissions()[0].refused or "")


def test_line_cut_short_is_left_out_and_the_next_one_is_read(study: Study) -> None:
    first = submit(study, "a")
    with (study.folder / "manifest.jsonl").open("a") as file:
        file.write('{"event": "submitted", "id"')
    assert [s.job for s in study.submissions()] == [None]
    first.record_job("3")
    assert [s.job for s in study.submissions()] == ["3"]


def test_a_second_command_waits_for_the_first(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fovea_detr.study.folder.LOCK_SECONDS", 0.2)
    with study.locked(), pytest.raises(Exception, match="another command"), study.locked():
        pass


def test_job_name_has_no_odd_characters() -> None:
    assert job_name("a,b study", "id") == "a_b_study-id"
