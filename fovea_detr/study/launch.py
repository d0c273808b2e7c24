"""A sweep, from composed points to array jobs: points that are done, queued or running are not submitted again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fovea_detr.errors import UserError
from fovea_detr.runs.state import Standing
from fovea_detr.study import local, queue, sbatch, snapshot
from fovea_detr.study.checks import batching_of, checked_states, points_by_study, refuse_missing_data
from fovea_detr.study.cost import cost_lines
from fovea_detr.study.folder import Study
from fovea_detr.study.manifest import Point, Submission
from fovea_detr.study.ready import make_ready
from fovea_detr.study.standing import PointStatus
from fovea_detr.study.status import launch_table

WAITING = "waiting"  # the word for a point that SLURM has no room for yet


def launch(points: Sequence[Point], kind: str, *, dry_run: bool = False) -> list[PointStatus]:
    """Submit the points that need it and print the state of each. UserError before the first submission, or none."""
    refuse_missing_data(points)
    for point in points:
        batching_of(point)
    studies = points_by_study(points)
    for study in studies if kind == "slurm" else ():
        sbatch.refuse_patterns(study.folder)
    act = show_plan if dry_run else submit_open
    return [status for study, group in studies.items() for status in act(study, group, kind)]


def submit_open(study: Study, points: Sequence[Point], kind: str) -> list[PointStatus]:
    with study.locked() as lock:
        statuses = checked_states(study, points, write=True)
        groups = group_by_resources(points, statuses)
        make_ready([point.config for group in groups for point in group])
        sent, why = submit_groups(study, groups, kind, lock.fileno())
    of_point = {point: submission for submission in sent for point in submission.points}
    open_ = {point.name for group in groups for point in group}
    for status in statuses:
        if status.point in of_point:
            status.standing, status.submission = Standing("submitted"), of_point[status.point]
        elif status.point in open_:
            status.standing = Standing(WAITING, why)
    print(launch_table(study.folder, statuses), flush=True)
    left = sum(status.state == WAITING for status in statuses)
    if left:
        print(f"{left} points wait, for SLURM takes no more of your jobs now; the same command submits them later")
    offer_rest(study, points)
    return statuses


def submit_groups(
    study: Study, groups: Sequence[Sequence[Point]], kind: str, lock: int
) -> tuple[list[Submission], str]:
    """An array job for each group, or several where it is larger than SLURM takes -> those, and why the rest waits."""
    sent: list[Submission] = []
    for group in groups:
        code = group[0].snapshot or snapshot.take(study.folder, leave_out=data_folders(group))
        rest, size = group, min(len(group), queue.largest_array() if kind == "slurm" else len(group))
        while rest:
            try:
                sent.append(study.submit(rest[:size], code, kind, lock))
                rest = rest[size:]
            except queue.LimitError as error:
                size = min(size, len(rest)) // 2
                if size == 0:
                    return sent, str(error)
            except queue.SlurmError as error:
                done = sum(len(submission.points) for submission in sent)
                what = f"{done} points were submitted, the others were not" if done else "nothing was submitted"
                raise UserError(f"{what}: {error}") from None
    return sent, ""


def offer_rest(study: Study, points: Sequence[Point]) -> None:
    """If these points are a part of what was submitted before, name those that are queued or running and not in it."""
    names = {point.name for point in points if point.typed}  # typed: a sweep's command, not a relaunch
    before = [submission.points for submission in study.submissions() if names & {*submission.points}]
    known = {point for submitted in before for point in submitted}
    if not names or not names < known:
        return
    rest = [s.point for s in study.current_states(sorted(known - names)) if s.standing.is_live]
    if rest:
        print(
            f"{len(rest)} queued or running points were submitted before and are not in this command; to cancel them: "
            f"python -m fovea_detr.study cancel {study.folder.name} {' '.join(rest)} --runs {study.folder.parent}"
        )


def show_plan(study: Study, points: Sequence[Point], kind: str) -> list[PointStatus]:
    """A dry run: print the scripts, the points with their states, and the cost."""
    statuses = checked_states(study, points, write=False)
    groups = group_by_resources(points, statuses)
    for n, group in enumerate(groups):
        code = group[0].snapshot or study.folder / ".snapshots" / "DRYRUN"
        if kind == "slurm":
            print(sbatch.script(Submission.new(study.folder, group, code, kind, id_=f"DRYRUN{n}")))
        else:
            print(local.describe(group[0].resources))
    print(launch_table(study.folder, statuses))
    chosen = [point for group in groups for point in group]
    if chosen:
        print("\n".join(f"batch: {text}" for text in dict.fromkeys(str(batching_of(point)) for point in chosen)))
        print("\n".join(cost_lines(chosen)))
    print("dry run: nothing was submitted or written")
    return statuses


def group_by_resources(points: Sequence[Point], statuses: Sequence[PointStatus]) -> list[list[Point]]:
    """The points to submit, grouped by what they ask of the queue and by their code: an array has one script."""
    groups: dict[str, list[Point]] = {}
    for point, status in zip(points, statuses, strict=True):
        if status.standing.needs_launch:
            key = json.dumps([point.resources, str(point.snapshot)], sort_keys=True)
            groups.setdefault(key, []).append(point)
    return list(groups.values())


def data_folders(points: Sequence[Point]) -> list[Path]:
    """Folders that are never part of the code, wherever in the checkout they are."""
    kept = set[str | None]()
    for config in (point.config for point in points):
        data = config.data
        kept |= {config.runs, data.root, data.cache, data.train.images, data.val.images}
    return [Path(path) for path in sorted(filter(None, kept))]
