"""SLURM's answers about jobs: one squeue and at most one sacct for any number of them. Standard library only."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fovea_detr.errors import UserError
from fovea_detr.runs.state import GONE_AFTER_REQUEUE, Job

SECONDS = 30  # squeue hangs while no controller answers
CLOCKS_SECONDS = 3600.0  # by which the clocks of two machines may differ
SACCT = ("sacct", "-n", "-P", "-X", "-o", "JobID,JobName,State,ExitCode,User")
SQUEUE = ("squeue", "-h", "-r", "-t", "all", "-o", "%i|%j|%T|%r|%u")


class SlurmError(UserError):
    """SLURM does not answer, or refuses. is_final: it has done nothing, and there is nobody to ask again."""

    is_final = False


class NoSlurmError(SlurmError):
    """There is no such command on this machine."""

    is_final = True


class LimitError(SlurmError):
    """SLURM takes no more jobs, or none of this size: fewer may fit, or later."""

    is_final = True


# AssocMaxSubmitJobLimit, QOSMaxSubmitJobPerUserLimit, "Invalid job array specification", "job submit limit"
LIMIT = re.compile(r"MaxSubmitJob|submit limit|array specification")


def command(arguments: Sequence[str], pass_fds: Sequence[int] = (), seconds: float = SECONDS) -> str:
    """A SLURM command's stdout. SlurmError, one line, if it fails, hangs or is not there."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=seconds, pass_fds=pass_fds)
    except FileNotFoundError:
        raise NoSlurmError(f"there is no {arguments[0]} here: this is not a machine of a SLURM cluster") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{arguments[0]} has not answered within {seconds:.0f} s: is slurmctld up?") from None
    if done.returncode != 0:
        message = "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
        kind = LimitError if LIMIT.search(message) else SlurmError
        raise kind(f"{arguments[0]}: {message or f'exit code {done.returncode}'}")
    return done.stdout


@dataclass(frozen=True)
class Asked(Job):
    """A job in the queue, whoever submitted it."""

    user: str = ""


def jobs(wanted: Iterable[tuple[str, str | None]], since: float = 0.0) -> dict[tuple[str, str], Asked]:
    """These tasks of any user, by name and id (`ARRAY_INDEX`); an id of None asks for all tasks of that name.

    An id alone is no proof: a controller may start counting anew, and each cluster counts for itself. squeue is asked
    once; the accounting, for jobs submitted after `since`, only about what squeue has forgotten.
    """
    wanted = set(wanted)
    names = {name for name, _ in wanted}
    if not wanted:
        return {}
    listed = parse_squeue(command([*SQUEUE, "--name", ",".join(sorted(names))]))
    found = {(job.name, job.id): job for job in listed if job.name in names}
    seen = found.keys() | {(name, None) for name, _ in found}
    forgotten = {name for name, _ in wanted - seen}
    if forgotten:
        begin = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(max(0.0, since - CLOCKS_SECONDS)))
        past = accounting(["-a", "--name", ",".join(sorted(forgotten)), "-S", begin])
        found = {(job.name, job.id): job for job in past if job.name in forgotten} | found
    return found


def holders(ids: Iterable[str]) -> dict[str, Asked]:
    """The jobs in the queue that have these ids now, by id, whatever they are called and whoever they belong to."""
    wanted = set(ids)
    return {job.id: job for job in parse_squeue(command(SQUEUE)) if job.id in wanted}


@lru_cache(maxsize=1)
def settings() -> dict[str, str]:
    """The cluster's configuration by name, as `scontrol show config` prints it; empty if it does not answer."""
    try:
        lines = command(["scontrol", "show", "config"]).splitlines()
    except SlurmError:
        return {}
    return {key.strip(): value.strip() for key, equals, value in (line.partition("=") for line in lines) if equals}


def cluster() -> str:
    """The name of the cluster that our commands speak to; empty if it is not known."""
    return settings().get("ClusterName") or os.environ.get("SLURM_CLUSTER_NAME", "")


def accounting(which: Sequence[str]) -> list[Asked]:
    """The jobs that sacct knows; none where the cluster has no accounting."""
    try:
        return list(parse_sacct(command([*SACCT, *which])))
    except SlurmError:
        return []


def parse_squeue(text: str) -> Iterator[Asked]:
    """Lines `ID|NAME|STATE|REASON|USER`. A name may hold what it likes: another's job may have any."""
    for line in text.splitlines():
        job, _, rest = line.strip().partition("|")
        if rest.count("|") >= 3:
            name, state, reason, user = rest.rsplit("|", 3)
            yield Asked(job, name, state, "" if reason == "None" else reason, user)


def parse_sacct(text: str) -> Iterator[Asked]:
    """Lines `ID|NAME|STATE|EXIT|USER` of `sacct -n -P -X`; tasks that have not started share one, `12_[1-3,5%2]`."""
    for line in text.splitlines():
        job, name, state, code, user = line.strip().split("|")[:5]
        for one in expanded(job):
            reason = GONE_AFTER_REQUEUE if state == "REQUEUED" else f"exit code {code}"
            yield Asked(one, name, _word(state), reason, user)


def _word(state: str) -> str:
    """`CANCELLED by 0` -> CANCELLED; empty for a bare CANCELLED, which nobody did: the controller has lost its jobs.

    A job that is cancelled, or lost, while it is being requeued stays REQUEUED in sacct; one that really waits is in
    squeue, which is asked first.
    """
    word = state.split()[0].rstrip("+") if state else "UNKNOWN"
    if word == "CANCELLED" and " by " not in state:
        return ""
    return "CANCELLED" if word == "REQUEUED" else word


def expanded(job: str) -> list[str]:
    """`12_[1-3,5%2]` -> 12_1, 12_2, 12_3, 12_5."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job)
    if not match:
        return [job]
    ranges = (part.partition("-") for part in match[2].split(","))
    return [f"{match[1]}_{n}" for first, _, last in ranges for n in range(int(first), int(last or first) + 1)]


def largest_array() -> int:
    """How many tasks an array may have here; no limit if that is not known, and SLURM will say so."""
    size = settings().get("MaxArraySize", "")
    return int(size) if size.isdigit() and int(size) > 0 else 1 << 30
