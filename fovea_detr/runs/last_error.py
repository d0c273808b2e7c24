"""Why a run ended that could not write it into state.json: the last error line of its logs. Standard library only."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

TAIL_BYTES = 64_000  # of each log: a traceback of every rank fits
LONGEST = 500  # characters of a reason
# Logs are appended to over all starts of a job. What stands before one of these lines did not end the last start.
BOUNDARY = re.compile(r"^\[.*\] (job \S+, restart \d+, \d+ ranks|stopped by SIG\w+; requeued)$")
# Messages of gloo and NCCL on the remaining ranks after another rank has ended.
RANK_LOST = re.compile(
    r"closed by peer|connection reset|broken pipe|remote process exited|socket closed|recv.*EOF|connection refused"
    r"|failed to recv|failed to send",
    re.IGNORECASE,
)
# SLURM's words for the consequence: another line tells the cause.
CONSEQUENCE = re.compile(r"(Exited with exit code|Exited with non-zero|tasks? \S+: |STEP \S+ ON .* CANCELLED)")
ERROR = re.compile(
    r"^(?:[\w.-]+: )?(?:error|fatal): (?P<ours>.+)"  # ours, srun's, slurmstepd's
    r"|^(?P<python>[\w.]*(?:Error|Exception|Interrupt|Exit)\b(?:: .+)?)$"
    r"|^(?P<system>.*(?:No module named|No space left on device|Disk quota exceeded|No such file or directory"
    r"|command not found|Permission denied|Input/output error|Stale file handle|Read-only file system"
    r"|Segmentation fault|Bus error|out of memory|oom[-_ ]kill|can't open file|exceeded .*memory limit).*)$",
    re.IGNORECASE,
)


def last_error(logs: Iterable[Path]) -> str:
    """The last line that tells why a job ended, in these logs of its ranks and its batch script; empty if none does.

    A cause (an exception, a full disk, a missing interpreter, a memory limit) goes before the loss of another rank, and
    that before SLURM's words for the consequence; among equals the log that is named first. Unreadable logs are empty.
    """
    found = [(_rank(line), -n, line) for n, log in enumerate(logs) for line in _errors(log)]
    if not found:
        return ""
    best = min(rank for rank, _, _ in found)
    first = max(order for rank, order, _ in found if rank == best)
    return [line for rank, order, line in found if (rank, order) == (best, first)][-1]


def _errors(log: Path) -> list[str]:
    """The error lines of the last start in a log, in their order, without what precedes the message."""
    lines = _tail(log)
    last = max((n for n, line in enumerate(lines) if BOUNDARY.match(line)), default=-1)
    matches = (ERROR.match(line) for line in lines[last + 1 :])
    return [next(filter(None, match.groups()))[:LONGEST].strip() for match in matches if match]


def _rank(line: str) -> int:
    if CONSEQUENCE.search(line):
        return 2
    return 1 if RANK_LOST.search(line) else 0


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = re.split(r"[\n\r]", text)
    return ["".join(letter if letter.isprintable() else " " for letter in line).strip() for line in lines]
