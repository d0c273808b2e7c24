"""What has been submitted is known after a crash at any moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from fovea_detr.study import queue
from fovea_detr.study.manifest import Manifest, Submission, job_name, new_id
from fovea_detr.study.status import adopt


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest(tmp_path / "study")


def submit(manifest: Manifest, *points: str) -> Submission:
    id_ = new_id()
    submission = Submission(id=id_, name=job_name("study", id_), points=list(points), snapshot="/code", time=1.0)
    with manifest.locked():
        manifest.will_submit(submission)
    return submission


def answer(monkeypatch: pytest.MonkeyPatch, *jobs: queue.Job) -> None:
    monkeypatch.setattr(queue, "jobs", lambda *_: {job.id: job for job in jobs})


def test_round_trip(manifest: Manifest) -> None:
    assert manifest.read() == []
    first = submit(manifest, "a", "b")
    manifest.was_submitted(first, "12")
    second = submit(manifest, "c")
    manifest.was_refused(second, "no such partition")
    assert manifest.read() == [first, second]
    assert (first.job_of("b"), second.job_of("c")) == ("12_1", None)
    assert manifest.config_file(first, "b").name == "1.yaml"


def test_crash_after_sbatch_is_found_by_name(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = submit(manifest, "a", "b")
    answer(monkeypatch, queue.Job("7_1", lost.name, "RUNNING"))
    adopt(manifest, submissions := manifest.read(), write=False)
    assert submissions[0].job == "7"
    assert manifest.read()[0].job is None, "a reader changes nothing"
    adopt(manifest, manifest.read(), write=True)
    assert manifest.read()[0].job == "7"


def test_crash_before_sbatch_is_settled(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(manifest, "a")
    answer(monkeypatch)
    adopt(manifest, manifest.read(), write=True)
    assert "never sent" in (manifest.read()[0].refused or "")


def test_line_cut_short_is_left_out_and_the_next_one_stands_alone(manifest: Manifest) -> None:
    first = submit(manifest, "a")
    with manifest.path.open("a") as file:
        file.write('{"event": "submitted", "id"')
    assert [s.job for s in manifest.read()] == [None]
    manifest.was_submitted(first, "3")
    assert [s.job for s in manifest.read()] == ["3"]


def test_a_second_command_waits_for_the_first(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fovea_detr.study.manifest.LOCK_SECONDS", 0.2)
    with manifest.locked(), pytest.raises(Exception, match="another command"), manifest.locked():
        pass


def test_job_name_has_no_odd_characters() -> None:
    assert job_name("a,b study", "id") == "a_b_study-id"
