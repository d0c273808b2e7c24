"""The commands on a study: show it, cancel it, launch again what failed, read a point's log.

    python -m fovea_detr.study status   STUDY [POINT ...] [--watch]
    python -m fovea_detr.study cancel   STUDY [POINT ...]
    python -m fovea_detr.study relaunch STUDY [POINT ...] [--same-code]
    python -m fovea_detr.study tail     STUDY POINT [--rank N] [--follow]

They read run folders, the study's manifest and SLURM, and import no torch. POINT may be some of a point's overrides,
as in seed=1 or dynamic_scale=type1,seed=1, or a pattern: 'seed=1*'.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fovea_detr.cli import Parser, one_line_errors
from fovea_detr.errors import UserError, tell
from fovea_detr.study.checks import refuse_twins
from fovea_detr.study.folder import Study, frozen_point
from fovea_detr.study.launch import launch
from fovea_detr.study.manifest import Point
from fovea_detr.study.standing import foreign_jobs
from fovea_detr.study.status import SECONDS, states_or_none, table

FAILED = ("failed", "lost", "preempted")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    with one_line_errors(), quiet_ends():
        study = Study(Path(options.runs).expanduser().absolute() / options.study)
        if not study.folder.is_dir():
            raise UserError(f"{study.folder}: there is no such study; another place: --runs FOLDER")
        {"status": show_status, "cancel": cancel, "relaunch": relaunch, "tail": tail}[options.verb](study, options)


@contextmanager
def quiet_ends() -> Iterator[None]:
    """Ctrl-C and a reader that has gone (`| head`) end a command without a word, as they end a shell's."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        sys.exit(128 + signal.SIGPIPE)


def parser() -> Parser:
    assert __doc__ is not None
    whole = Parser(prog="python -m fovea_detr.study", description=__doc__)
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
            verb.add_argument("--watch", action="store_true", help=f"again every {SECONDS:.0f} s, until all ended")
        if name == "relaunch":
            verb.add_argument("--same-code", action="store_true", help="with the code of the first launch, not today's")
        if name == "tail":
            verb.add_argument("--rank", type=int, default=0)
            verb.add_argument("--follow", action="store_true", help="print what is added, until Ctrl-C")
    return whole


def show_status(study: Study, options: Namespace) -> None:
    while True:
        points = study.points(options.points)
        statuses = states_or_none(study, points) if options.watch else study.current_states(points)
        if statuses or not points:
            text = table(study.folder, statuses)
            print(f"\033[H\033[J{text}" if options.watch and sys.stdout.isatty() else text, flush=True)
            if not options.watch or not any(status.standing.is_live for status in statuses):
                return
        time.sleep(SECONDS)


def cancel(study: Study, options: Namespace) -> None:
    """Queued and running points, all of them or those named. What they have saved stays."""
    statuses = study.current_states(study.points(options.points))
    for line in foreign_jobs(statuses):
        tell(line)
    live = [status for status in statuses if status.standing.is_live and status.job]
    if not live:
        raise UserError(f"{study.folder}: none of these points is queued or running")
    study.cancel([status for status in live if status.slurm])
    print("\n".join(f"cancelled {status.point} (job {status.job})" for status in live if status.slurm))
    for status in live:
        if not status.slurm:
            raise UserError(f"{status.point} (job {status.job}): cannot be cancelled from here: {status.reason}")


def relaunch(study: Study, options: Namespace) -> None:
    """Points that failed, are lost, or were preempted and not queued again; cancelled ones only if they are named."""
    wanted = (*FAILED, "cancelled") if options.points else FAILED
    statuses = study.current_states(study.points(options.points))
    chosen = [status for status in statuses if status.state in wanted]
    first = {point: one for one in reversed(study.submissions()) for point in one.points}
    kinds: dict[str, list[Point]] = {}
    for status in chosen:
        if status.submission is None:
            raise UserError(f"{status.point} was not submitted by a sweep: start it again by its own command")
        submission = first[status.point] if options.same_code else status.submission
        point = frozen_point(submission, status.point, same_code=options.same_code)
        kinds.setdefault(status.submission.kind, []).append(point)
    if not chosen:
        print(f"{study.folder}: nothing to launch again")
    for kind, points in kinds.items():
        if not options.same_code:
            refuse_twins(points)
        launch(points, kind)


def tail(study: Study, options: Namespace) -> None:
    matching = study.current_states(study.points([options.point]))
    if len(matching) != 1:
        raise UserError(f"{options.point} matches {len(matching)} points; name one")
    (status,) = matching
    files = status.submission.log_files(status.point, options.rank) if status.submission else []
    if not files and options.rank and status.submission:
        ranks = sorted({path.name.split("_")[-2] for path in status.submission.log_files(status.point, "*")})
        raise UserError(f"{status.point} has no rank {options.rank}; there are logs of: {', '.join(ranks) or 'none'}")
    path = files[-1] if files else study.folder / status.point / "train.log"
    if not path.exists():
        raise UserError(f"{status.point} ({status.state}) has printed nothing yet")
    print(f"==> {path} <==")
    with path.open(errors="replace") as file:
        print("".join(file.readlines()[-40:]), end="", flush=True)
        while options.follow:
            print(file.read(), end="", flush=True)
            time.sleep(0.5)


if __name__ == "__main__":
    main()
