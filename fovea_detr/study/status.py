"""The states of points for a person: the tables of `study status` and of a launch, and waiting until all have ended."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.state import read_or_note
from fovea_detr.study.folder import PointStatus, Study
from fovea_detr.study.queue import SlurmError

SECONDS = 5.0  # between two looks at the queue


def table(folder: Path, statuses: Sequence[PointStatus]) -> str:
    """What `study status` prints of the study in this folder."""
    rows = [("point", "state", "slurm", "job", "epoch", "restarts", "reason")]
    rows += [_row(RunFolder(folder / status.point), status) for status in statuses]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(r, widths, strict=True)).rstrip() for r in rows)


def _row(run: RunFolder, status: PointStatus) -> tuple[str, ...]:
    start = status.record.get("start")
    restarts = str(start.get("restarts", 0)) if isinstance(start, dict) else "0"
    reason = (status.reason.splitlines() or [""])[0]
    return (status.point, status.state, status.slurm or "-", status.job or "-", progress(run, status), restarts, reason)


def progress(run: RunFolder, status: PointStatus) -> str:
    """`3/50 +120`: finished epochs, of how many, and steps of the current one at the last heartbeat."""
    epochs = re.search(r"^  epochs: (\d+)$", run.config_text() or "", re.MULTILINE)
    if epochs is None:
        return "-"
    done = len(read_or_note("history.jsonl", run.history, list, []) or [])
    steps = status.record.get("batches_done", 0) if status.record.get("epoch", done) == done else 0
    return f"{done}/{epochs[1]}{f' +{steps}' if steps else ''}"


def launch_table(folder: Path, statuses: Sequence[PointStatus]) -> str:
    """What the sweep's command prints: a line per point, and how many are in each state."""
    width = max(len(status.point) for status in statuses)
    lines = []
    for status in statuses:
        job = f"job {status.job}" if status.job else ""
        lines.append(f"{status.point:{width}}  {status.state:9}  {job:10}  {status.reason}".rstrip())
    counts = Counter(status.state for status in statuses)
    open_ = counts["submitted"] or any(status.standing.needs_launch for status in statuses)
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return "\n".join([*lines, f"{folder}: {'' if open_ else 'nothing to submit: '}{summary}"])


def until_ended(studies: Mapping[Study, Sequence[str]], seconds: float = SECONDS) -> bool:
    """Print every change until all these points have ended -> whether all are done.

    Ctrl-C leaves the jobs alone and exits with 130.
    """
    printed: dict[tuple[Study, str], str] = {}
    try:
        while True:
            now = {(study, s.point): s for study, points in studies.items() for s in _states_or_none(study, points)}
            for key, status in now.items():
                if printed.get(key) != (text := _describe(status)):
                    print(f"{time.strftime('%H:%M:%S')} {status.point}: {text}", flush=True)
                    printed[key] = text
            if now and not any(status.standing.is_live for status in now.values()):
                done = sum(status.state == "done" for status in now.values())
                print(f"{done} of {len(now)} points done")
                return done == len(now)
            time.sleep(seconds)
    except KeyboardInterrupt:
        folders = ", ".join(str(study.folder) for study in studies)
        print(f"\nno longer waiting; the jobs of {folders} go on", file=sys.stderr)
        sys.exit(130)


def _states_or_none(study: Study, points: Sequence[str]) -> list[PointStatus]:
    """Empty while SLURM does not answer, which may be an hour of maintenance."""
    try:
        return study.current_states(points)
    except SlurmError as error:
        print(f"{time.strftime('%H:%M:%S')} {error}; waiting", file=sys.stderr, flush=True)
        return []


def _describe(status: PointStatus) -> str:
    job = f" (job {status.job})" if status.job else ""
    return f"{status.state}{job}{': ' + status.reason if status.reason else ''}"
