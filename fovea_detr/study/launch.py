"""A sweep, from composed points to array jobs: points that are done, queued or running are not submitted again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fovea_detr.config.schema import Config
from fovea_detr.errors import ConfigError
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.identity import refuse_other_config
from fovea_detr.runs.state import Standing
from fovea_detr.study import sbatch, snapshot
from fovea_detr.study.folder import PointStatus, Study
from fovea_detr.study.manifest import Point, Submission
from fovea_detr.study.status import launch_table

GPU_HOURS_PER_EPOCH = 4.0  # on COCO: 30 minutes on 8 V100, published for the fovea with R50


def launch(points: Sequence[Point], kind: str, *, dry_run: bool = False) -> list[PointStatus]:
    """Submit the points that need it and print the state of each. UserError before the first submission, or none."""
    refuse_missing_data(points)
    studies: dict[Path, list[Point]] = {}
    for point in points:
        studies.setdefault(point.study_folder, []).append(point)
    act = show_plan if dry_run else submit_open
    return [status for folder, group in studies.items() for status in act(Study(folder), group, kind)]


def submit_open(study: Study, points: Sequence[Point], kind: str) -> list[PointStatus]:
    with study.locked() as lock:
        statuses = checked_states(study, points, write=True)
        for group in group_by_resources(points, statuses):
            code = group[0].snapshot or snapshot.take(study.folder, leave_out=data_folders(points))
            submission = study.submit(group, code, kind, lock.fileno())
            for status in statuses:
                if status.point in submission.points:
                    status.standing, status.submission = Standing("submitted"), submission
    print(launch_table(study.folder, statuses), flush=True)
    return statuses


def show_plan(study: Study, points: Sequence[Point], kind: str) -> list[PointStatus]:
    """A dry run: print the scripts, the points with their states, and the cost."""
    statuses = checked_states(study, points, write=False)
    groups = group_by_resources(points, statuses)
    for n, group in enumerate(groups):
        code = group[0].snapshot or study.folder / ".snapshots" / "DRYRUN"
        if kind == "slurm":
            print(sbatch.script(Submission.new(study.folder, group, code, kind, f"DRYRUN{n}")))
    print(launch_table(study.folder, statuses))
    chosen = [point.config for group in groups for point in group]
    if chosen:
        print("\n".join(cost_lines(chosen)))
    print("dry run: nothing was submitted or written")
    return statuses


def checked_states(study: Study, points: Sequence[Point], *, write: bool) -> list[PointStatus]:
    """Where the points stand. RunFolderError if a folder holds a run with another configuration."""
    for point in points:
        refuse_other_config(point.config, RunFolder(study.folder / point.name))
    return study.current_states([point.name for point in points], write=write)


def refuse_twins(points: Sequence[Point]) -> None:
    seen: set[tuple[Path, str]] = set()
    for point in points:
        key = (point.study_folder, point.name)
        if key in seen:
            raise ConfigError(
                f"two points of this sweep would share the folder {key[0] / key[1]}: they differ only in what is not "
                "part of a run (cluster, paths, ...); nothing was started"
            )
        seen.add(key)


def refuse_missing_data(points: Sequence[Point]) -> None:
    for point in points:
        if point.config.data.name == "coco" and point.config.data.root is None:
            raise ConfigError(
                f"point {point.name}: data.root is not set, so every job would end at once: add data.root=COCO; "
                "nothing was started"
            )


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
    kept = {path for p in points for path in (p.config.runs, p.config.data.root, p.config.data.cache) if path}
    return [Path(path) for path in sorted(kept)]


def hours_by_schedule(config: Config) -> float | None:
    """GPU-hours of a run from its schedule; None where the time of an epoch is not known."""
    if config.device == "cpu":
        return 0.0
    if config.data.name != "coco" or config.mode != "train":
        return None
    return GPU_HOURS_PER_EPOCH * config.schedule.epochs


def hours_at_most(config: Config) -> float:
    """GPU-hours at most until the time limit of one start."""
    cluster = config.cluster
    return 0.0 if config.device == "cpu" else cluster.nodes * cluster.gpus * cluster.hours


def cost_lines(configs: Sequence[Config]) -> list[str]:
    """The estimated cost of some points."""
    known = [hours for config in configs if (hours := hours_by_schedule(config)) is not None]
    unknown = len(configs) - len(known)
    total, most = sum(known), sum(hours_at_most(config) for config in configs)
    guess = f"{total:g} GPU-hours by schedule (30 minutes an epoch of COCO on 8 V100)"
    if unknown:
        guess += f", and {unknown} point{'s' if unknown > 1 else ''} of unknown length"
    if all(config.device == "cpu" for config in configs):
        guess = "no GPU-hours (device=cpu)"
    return [f"cost: {guess}", f"at most {most:g} GPU-hours until the time limit of the first start"]
