"""SLURM's answers about jobs: one squeue and at most one sacct for any number of them. Standard library only."""

from __future__ import annotations

import getpass
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence

from fovea_detr.errors import UserError
from fovea_detr.runs.state import Job

SECONDS = 30  # squeue hangs while no controller answers


class SlurmError(UserError):
    """SLURM does not answer, or refuses."""


def command(arguments: Sequence[str], pass_fds: Sequence[int] = (), seconds: float = SECONDS) -> str:
    """A SLURM command's stdout. SlurmError, one line, if it fails, hangs or is not there."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=seconds, pass_fds=pass_fds)
    except FileNotFoundError:
        raise SlurmError(f"there is no {arguments[0]} here: this is not a machine of a SLURM cluster") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{arguments[0]} has not answered within {seconds:.0f} s: is slurmctld up?") from None
    if done.returncode != 0:
        message = "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
        raise SlurmError(f"{arguments[0]}: {message or f'exit code {done.returncode}'}")
    return done.stdout


def jobs(ids: Iterable[str], names: Iterable[str] = (), since: float = 0.0) -> dict[str, Job]:
    """These tasks (`ARRAY_INDEX`), and all tasks of jobs of these names (submitted after `since`), by id.

    squeue is asked once; the accounting only for what squeue has forgotten.
    """
    ids, names = set(ids), set(names)
    if not ids and not names:
        return {}
    squeue = ["squeue", "-h", "-r", "-t", "all", "-u", getpass.getuser(), "-o", "%i|%j|%T|%r"]
    found = {job.id: job for job in parse_squeue(command(squeue)) if job.id in ids or job.name in names}
    arrays = sorted({job.partition("_")[0] for job in ids - found.keys()})
    unseen = sorted(names - {job.name for job in found.values()})
    if arrays:
        found |= {job.id: job for job in accounting(["-j", ",".join(arrays)]) if job.id in ids - found.keys()}
    if unseen:
        begin = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since))
        found |= {job.id: job for job in accounting(["--name", ",".join(unseen), "-S", begin])}
    return found


def accounting(which: Sequence[str]) -> list[Job]:
    """The jobs that sacct knows; none where the cluster has no accounting."""
    try:
        return list(parse_sacct(command(["sacct", "-n", "-P", "-X", *which, "-o", "JobID,JobName,State,ExitCode"])))
    except SlurmError:
        return []


def parse_squeue(text: str) -> Iterator[Job]:
    """Lines `ID|NAME|STATE|REASON` of `squeue -h -r -o '%i|%j|%T|%r'`."""
    for line in text.splitlines():
        job, name, state, reason = line.strip().split("|", 3)
        yield Job(job, name, state, "" if reason == "None" else reason)


def parse_sacct(text: str) -> Iterator[Job]:
    """Lines `ID|NAME|STATE|EXIT` of `sacct -n -P -X`; tasks that have not started share one line, `12_[1-3,5%2]`."""
    for line in text.splitlines():
        job, name, state, code = line.strip().split("|")[:4]
        for one in expanded(job):
            yield Job(one, name, _word(state), f"exit code {code}")


def _word(state: str) -> str:
    """`CANCELLED by 0` -> CANCELLED. A job that is cancelled while it is being requeued stays REQUEUED in sacct.

    A job that really waits is in squeue, which is asked first.
    """
    word = state.split()[0].rstrip("+") if state else "UNKNOWN"
    return "CANCELLED" if word == "REQUEUED" else word


def expanded(job: str) -> list[str]:
    """`12_[1-3,5%2]` -> 12_1, 12_2, 12_3, 12_5."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job)
    if not match:
        return [job]
    ranges = (part.partition("-") for part in match[2].split(","))
    return [f"{match[1]}_{n}" for first, _, last in ranges for n in range(int(first), int(last or first) + 1)]
