"""A study's verbs: see it, cancel it, launch again what failed, read a point's log.

    python -m fovea_detr.study status   STUDY [POINT ...] [--watch]
    python -m fovea_detr.study cancel   STUDY [POINT ...]
    python -m fovea_detr.study relaunch STUDY [POINT ...] [--same-code]
    python -m fovea_detr.study tail     STUDY POINT [--rank N] [--follow]

Reads run folders, the study's manifest and SLURM; nothing else, and no torch. POINT may be a pattern: '*seed=1*'.
"""

from __future__ import annotations

import argparse
import fnmatch
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fovea_detr.cli import one_line_errors
from fovea_detr.errors import UserError
from fovea_detr.runs.folder import RunFolder
from fovea_detr.study import launch, queue
from fovea_detr.study.manifest import Manifest, load_frozen
from fovea_detr.study.status import Standing, adopt, log_files, standings

FAILED = ("failed", "lost", "preempted")
WATCH_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    with one_line_errors():
        manifest = Manifest(Path(options.runs).expanduser().absolute() / options.study)
        if not manifest.folder.is_dir():
            raise UserError(f"{manifest.folder}: there is no such study; another place: --runs FOLDER")
        {"status": status, "cancel": cancel, "relaunch": relaunch, "tail": tail}[options.verb](manifest, options)


def parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    whole = argparse.ArgumentParser(
        prog="python -m fovea_detr.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = whole.add_subparsers(dest="verb", required=True, metavar="status | cancel | relaunch | tail")
    for name in ("status", "cancel", "relaunch", "tail"):
        verb = verbs.add_parser(name)
        verb.add_argument("study")
        verb.add_argument("--runs", default="runs", help="the folder of studies")
        if name == "tail":
            verb.add_argument("point")
        else:
            verb.add_argument("points", nargs="*")
        if name == "status":
            verb.add_argument(
                "--watch", action="store_true", help=f"again every {WATCH_SECONDS:.0f} s, until all ended"
            )
        if name == "relaunch":
            verb.add_argument("--same-code", action="store_true", help="with the code of the first time, not today's")
        if name == "tail":
            verb.add_argument("--rank", type=int, default=0)
            verb.add_argument("--follow", action="store_true", help="go on as it grows, until Ctrl-C")
    return whole


def status(manifest: Manifest, options: argparse.Namespace) -> None:
    while True:
        stand = look(manifest, options.points)
        text = table(manifest, stand)
        print(f"\033[H\033[J{text}" if options.watch and sys.stdout.isatty() else text, flush=True)
        if not options.watch or all(standing.state not in ("queued", "running") for standing in stand):
            return
        time.sleep(WATCH_SECONDS)


def cancel(manifest: Manifest, options: argparse.Namespace) -> None:
    """Queued and running points, all of them or those named. What they have saved stays."""
    live = [s for s in look(manifest, options.points) if s.state in ("queued", "running") and s.job]
    if not live:
        raise UserError(f"{manifest.folder}: none of these points is queued or running")
    if options.points and any(standing.job.startswith("local") for standing in live):
        raise UserError("the queue of this machine is cancelled as a whole: name no point")
    jobs = [standing.job for standing in live if not standing.job.startswith("local")]
    for start in range(0, len(jobs), 500):
        queue.command(["scancel", *jobs[start : start + 500]])
    for pid in {int(s.job.split("-")[1].split("_")[0]) for s in live if s.job.startswith("local")}:
        queue.command(["kill", str(pid)])
    print("\n".join(f"cancelled {standing.point} (job {standing.job})" for standing in live))


def relaunch(manifest: Manifest, options: argparse.Namespace) -> None:
    """Points that failed, are lost, or were preempted and not queued again; cancelled ones only if they are named."""
    wanted = (*FAILED, "cancelled") if options.points else FAILED
    chosen = [standing for standing in look(manifest, options.points) if standing.state in wanted]
    unknown = [standing.point for standing in chosen if standing.submission is None]
    if unknown:
        raise UserError(f"{unknown[0]} was not submitted by a sweep: start it again by its own command")
    if not chosen:
        print(f"{manifest.folder}: nothing to launch again")
        return
    kinds: dict[str, list[launch.Point]] = {}
    for standing in chosen:
        assert standing.submission is not None
        kinds.setdefault(standing.submission.kind, []).append(again(manifest, standing, options.same_code))
    for kind, points in kinds.items():
        launch.launch(points, kind)


def again(manifest: Manifest, standing: Standing, same_code: bool) -> launch.Point:
    """The point with its frozen configuration."""
    submission = standing.submission
    assert submission is not None
    config = load_frozen(manifest.config_file(submission, standing.point))
    code = Path(submission.snapshot) if same_code else None
    return launch.Point(standing.point, config, submission.resources, code)


def tail(manifest: Manifest, options: argparse.Namespace) -> None:
    matching = look(manifest, [options.point])
    if len(matching) != 1:
        raise UserError(f"{options.point} stands for {len(matching)} points; name one")
    submission = matching[0].submission
    files = log_files(manifest, submission, matching[0].point, options.rank) if submission else []
    path = files[-1] if files else manifest.folder / matching[0].point / "train.log"
    if not path.exists():
        raise UserError(f"{matching[0].point} ({matching[0].state}) has printed nothing yet")
    print(f"==> {path} <==")
    with path.open(errors="replace") as file:
        print("".join(file.readlines()[-40:]), end="", flush=True)
        while options.follow:
            print(file.read(), end="", flush=True)
            time.sleep(0.5)


def look(manifest: Manifest, patterns: Sequence[str]) -> list[Standing]:
    """All points of the study, or those that match. UserError for a pattern that matches none."""
    submissions = manifest.read()
    adopt(manifest, submissions, write=False)
    known = {point for submission in submissions for point in submission.points}
    known |= {path.parent.name for path in manifest.folder.glob("*/state.json")}
    for pattern in patterns:
        if not any(_matches(point, pattern) for point in known):
            raise UserError(f"{manifest.folder}: no point is called {pattern}")
    points = sorted(p for p in known if not patterns or any(_matches(p, pattern) for pattern in patterns))
    return standings(manifest, points, submissions)


def _matches(point: str, pattern: str) -> bool:
    return point == pattern or fnmatch.fnmatchcase(point, pattern)


def table(manifest: Manifest, stand: Sequence[Standing]) -> str:
    rows = [("point", "state", "slurm", "job", "epoch", "restarts", "reason")]
    rows += [row(manifest.folder, standing) for standing in stand]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(r, widths, strict=True)).rstrip() for r in rows)


def row(folder: Path, standing: Standing) -> tuple[str, ...]:
    run = RunFolder(folder / standing.point)
    restarts = (run.state() or {}).get("start", {}).get("restarts", 0)
    reason = standing.reason.splitlines()[0] if standing.reason else ""
    return (
        standing.point,
        standing.state,
        standing.slurm or "-",
        standing.job or "-",
        progress(run),
        str(restarts),
        reason,
    )


def progress(run: RunFolder) -> str:
    """`3/50 +120`: epochs done, of how many, and steps of the present one at the last sign of life."""
    epochs = re.search(r"^  epochs: (\d+)$", run.config_text() or "", re.MULTILINE)
    if epochs is None:
        return "-"
    done, record = len(run.history()), run.state() or {}
    steps = record.get("batches_done", 0) if record.get("epoch", done) == done else 0
    return f"{done}/{epochs[1]}{f' +{steps}' if steps else ''}"


if __name__ == "__main__":
    main()
