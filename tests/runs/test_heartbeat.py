"""A rank that is stopped is found by the others and named, within cluster.stall_minutes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from fovea_detr.runs import heartbeat
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.heartbeat import Heartbeat, file_name
from tests.launch import only_folder, start, wait_for
from tests.runs.test_claim import ENDLESS, has_checkpoint
from tests.training.test_resume import workers


@pytest.fixture
def beating(tmp_path: Path) -> Heartbeat:
    """Of rank 0 of 3, which gives the others a minute; no thread is started."""
    folder = RunFolder(tmp_path)
    folder.lock()
    return Heartbeat(folder, 0, 3, minutes=1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [time.monotonic()]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    return now


def look_for(seconds: int, beating: Heartbeat, clock: list[float], alive: tuple[int, ...]) -> str:
    """Look every 5 seconds, while these ranks beat."""
    for _ in range(0, seconds, 5):
        clock[0] += 5
        for rank in alive:
            path = beating._folder.path / file_name(rank)
            path.touch()
            os.utime(path, ns=(0, int(clock[0] * 1e9)))
        if (error := beating.silent_rank()) is not None:
            return str(error)
    return ""


def test_the_silent_rank_is_named_after_a_minute(beating: Heartbeat, clock: list[float]) -> None:
    assert look_for(300, beating, clock, alive=(1, 2)) == ""
    assert look_for(55, beating, clock, alive=(1,)) == ""
    assert look_for(10, beating, clock, alive=(1,)).startswith("rank 2 has been silent for 1")


def test_a_rank_that_never_begins_is_silent(beating: Heartbeat, clock: list[float]) -> None:
    assert look_for(65, beating, clock, alive=(2,)).startswith("rank 1 has been silent")


def test_a_rank_that_has_ended_is_not(beating: Heartbeat, clock: list[float]) -> None:
    assert look_for(10, beating, clock, alive=(1, 2)) == ""
    (beating._folder.path / file_name(2)).unlink()
    assert look_for(300, beating, clock, alive=(1,)) == ""


def test_after_all_were_suspended_the_minute_begins_again(beating: Heartbeat, clock: list[float]) -> None:
    assert look_for(10, beating, clock, alive=(1, 2)) == ""
    clock[0] += 3600
    assert look_for(55, beating, clock, alive=()) == ""
    assert "silent" in look_for(15, beating, clock, alive=())


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_of_a_real_run_ends_it_within_the_time(tmp_path: Path, rank: int) -> None:
    where = (f"runs={tmp_path / 'runs'}", f"data.cache={tmp_path / 'cache'}", "cluster.stall_minutes=0.2")
    process = start(*ENDLESS, *where, ranks=2)
    assert wait_for(lambda: has_checkpoint(tmp_path / "runs"), process)
    pid = workers(process, 2)[rank]
    os.kill(pid, signal.SIGSTOP)
    begin = time.monotonic()
    folder = only_folder(tmp_path / "runs")
    assert wait_for(lambda: folder.record().get("state") == "failed", process, seconds=60)
    assert time.monotonic() - begin < 40
    os.kill(pid, signal.SIGCONT)
    process.communicate(timeout=90)
    assert process.returncode != 0
    record = folder.record()
    assert record["reason"].startswith(f"rank {rank} has been silent for 0.2"), record
    assert record["rank"] == rank
