"""The output of squeue and sacct, recorded on SLURM 22.05, and what is read from it."""

from __future__ import annotations

import pytest

from fovea_detr.study import queue
from fovea_detr.study.queue import Asked, expanded, parse_sacct, parse_squeue

SQUEUE = """\
18_0|shell2-1123-063832-6bd047|PENDING|None|ann
16_0|down-1123-063746-6b1c2d|PENDING|BeginTime|ann
15_0|nodes-1123-063744-a3ee10|COMPLETING|None|ann
9_0|kill-1123-063427-1b170c|FAILED|NonZeroExitCode|ann
"""
SACCT = """\
1_0|tiny-1123-062815-6f001a|COMPLETED|0:0|ann
9_0|kill-1123-063427-1b170c|FAILED|15:0|ann
13_0|scancel-1123-063551-0a1|CANCELLED by 0|0:15|ann
20_[2-3,5%2]|wide-1123-064000-0a1|PENDING|0:0|ann
21_0|memory|OUT_OF_ME+|0:125|ann
22_0|cancelled-as-it-was-requeued|REQUEUED|0:0|ann
23_0|the-controller-has-lost-it|CANCELLED|0:0|ann
"""


def test_squeue() -> None:
    jobs = list(parse_squeue(SQUEUE))
    assert [job.is_live for job in jobs] == [True, True, True, False]
    assert [job.is_waiting for job in jobs] == [True, True, False, False]
    assert jobs[1] == Asked("16_0", "down-1123-063746-6b1c2d", "PENDING", "BeginTime", "ann")


def test_sacct() -> None:
    jobs = {job.id: job for job in parse_sacct(SACCT)}
    assert [jobs[id_].state for id_ in ("1_0", "9_0", "13_0")] == ["COMPLETED", "FAILED", "CANCELLED"]
    assert jobs["22_0"].state == "CANCELLED", "squeue, which is asked first, does not know it"
    assert jobs["22_0"].reason == "requeued, then cancelled or lost: SLURM does not tell which"
    assert jobs["23_0"].state == "", "nobody has cancelled it"
    assert jobs.keys() >= {"20_2", "20_3", "20_5"}
    assert jobs["9_0"].reason == "exit code 15:0"


def test_ranges_of_an_array() -> None:
    assert expanded("7_[0-2,9]") == ["7_0", "7_1", "7_2", "7_9"]
    assert expanded("7_[4%2]") == ["7_4"]
    assert expanded("7_3") == ["7_3"]


KILL, DOWN = ("kill-1123-063427-1b170c", "9_0"), ("down-1123-063746-6b1c2d", "16_0")
TINY = ("tiny-1123-062815-6f001a", "1_0")


def test_sacct_is_called_only_for_jobs_that_squeue_does_not_list(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def command(arguments: list[str], **_: object) -> str:
        asked.append(arguments)
        return SQUEUE if arguments[0] == "squeue" else SACCT

    monkeypatch.setattr(queue, "command", command)
    assert queue.jobs([]) == {}
    assert queue.jobs([KILL, DOWN])[KILL].state == "FAILED"
    assert [arguments[0] for arguments in asked] == ["squeue"]
    found = queue.jobs([KILL, TINY, ("wide-1123-064000-0a1", "99_0")])
    assert (found[TINY].state, found[KILL].state) == ("COMPLETED", "FAILED")
    assert "tiny-1123-062815-6f001a,wide-1123-064000-0a1" in asked[-1]
    assert queue.jobs([(TINY[0], None)])[TINY].state == "COMPLETED"


def test_an_id_of_another_name_is_another_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller has begun to count anew, or it is another cluster's."""
    monkeypatch.setattr(queue, "command", lambda arguments, **_: SQUEUE if arguments[0] == "squeue" else "")
    assert queue.jobs([("mine-1123-070000-abc123", "16_0")]) == {}
    assert queue.holders(["16_0"])["16_0"].name == DOWN[0]


def test_a_name_with_a_bar_is_read_to_its_end() -> None:
    (job,) = parse_squeue("7|a|b|RUNNING|None|bob\n")
    assert (job.name, job.state, job.user) == ("a|b", "RUNNING", "bob")


def test_missing_slurm_is_one_line() -> None:
    with pytest.raises(queue.SlurmError, match="not a machine of a SLURM cluster"):
        queue.command(["no-such-program"])
    with pytest.raises(queue.SlurmError, match="has not answered"):
        queue.command(["sleep", "5"], seconds=0.1)
    with pytest.raises(queue.SlurmError, match="No such file"):
        queue.command(["ls", "/nowhere"])
