"""The states of points for a person: the tables of `study status` and of a launch, and waiting until all have ended."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.provenance import CODE_DIR
from fovea_detr.runs.state import read_or_note
from fovea_detr.study.folder import Study
from fovea_detr.study.manifest import Point
from fovea_detr.study.names import labels
from fovea_detr.study.queue import SlurmError
from fovea_detr.study.standing import PointStatus

SECONDS = 5.0  # between two looks at the queue


def table(folder: Path, statuses: Sequence[PointStatus]) -> str:
    """What `study status` prints of the study in this folder."""
    short = labels([status.point for status in statuses])
    rows = [("point", "state", "slurm", "job", "epoch", "restarts", "reason")]
    rows += [_row(RunFolder(folder / status.point), short[status.point], status) for status in statuses]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([*lines, f"{folder}: {counts(statuses)}", *edited(statuses)])


def _row(run: RunFolder, label: str, status: PointStatus) -> tuple[str, ...]:
    start = status.record.get("start")
    restarts = str(start.get("restarts", 0)) if isinstance(start, dict) else "0"
    reason = (status.reason.splitlines() or [""])[0]
    return (label, status.state, status.slurm or "-", status.job or "-", progress(run, status), restarts, reason)


def counts(statuses: Sequence[PointStatus]) -> str:
    """`3 done, 1 running`."""
    found = Counter(status.state for status in statuses)
    return ", ".join(f"{count} {state}" for state, count in found.items()) or "no points"


def edited(statuses: Sequence[PointStatus]) -> list[str]:
    """A line that names the files of conf/ whose edits come too late for queued points."""
    queued = [status for status in statuses if status.state == "queued" and status.submission]
    names = {name for code in {s.submission.snapshot for s in queued if s.submission} for name in _edited(Path(code))}
    if not names:
        return []
    return [
        f"note: {', '.join(sorted(names))}: edited since; the {len(queued)} queued points run what was submitted; for "
        "today's, cancel them and give the sweep's command again"
    ]


def _edited(snapshot: Path) -> Iterator[str]:
    for then in (snapshot / "conf").rglob("*.yaml"):
        name = then.relative_to(snapshot)
        now = CODE_DIR / name
        if not now.is_file() or now.read_bytes() != then.read_bytes():
            yield str(name)


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
    short = labels([status.point for status in statuses])
    width = max(map(len, short.values()))
    lines = []
    for status in statuses:
        job = f"job {status.job}" if status.job else ""
        lines.append(f"{short[status.point]:{width}}  {status.state:9}  {job:10}  {status.reason}".rstrip())
    is_open = any(status.state == "submitted" or status.standing.needs_launch for status in statuses)
    return "\n".join([*lines, f"{folder}: {'' if is_open else 'nothing to submit: '}{counts(statuses)}"])


def until_ended(points: Sequence[Point], seconds: float = SECONDS) -> None:
    """Print every change until all these points have ended. Ctrl-C leaves the jobs alone and exits with 130."""
    studies: dict[Study, list[str]] = {}
    for point in points:
        studies.setdefault(Study(point.study_folder), []).append(point.name)
    short, printed = labels([point.name for point in points]), dict[tuple[Study, str], str]()
    try:
        while studies:
            now = {(study, s.point): s for study, names in studies.items() for s in states_or_none(study, names)}
            for key, status in now.items():
                if printed.get(key) != (text := _describe(status)):
                    print(f"{time.strftime('%H:%M:%S')} {short[status.point]}: {text}", flush=True)
                    printed[key] = text
            if now and not any(status.standing.is_live for status in now.values()):
                print(f"{sum(status.state == 'done' for status in now.values())} of {len(now)} points done", flush=True)
                return
            time.sleep(seconds)
    except KeyboardInterrupt:
        folders = ", ".join(str(study.folder) for study in studies)
        print(f"\nno longer waiting; the jobs of {folders} go on", file=sys.stderr)
        sys.exit(130)


def states_or_none(study: Study, points: Sequence[str]) -> list[PointStatus]:
    """Empty while SLURM does not answer, which may be an hour of maintenance."""
    try:
        return study.current_states(points)
    except SlurmError as error:
        print(f"{time.strftime('%H:%M:%S')} {error}; waiting", file=sys.stderr, flush=True)
        return []


def _describe(status: PointStatus) -> str:
    job = f" (job {status.job})" if status.job else ""
    return f"{status.state}{job}{': ' + status.reason if status.reason else ''}"
