"""A sweep, from composed points to array jobs: points that are done, queued or running are not submitted again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fovea_detr.config.local import NO_ROOT
from fovea_detr.config.schema import Config
from fovea_detr.data.readers import fingerprints
from fovea_detr.errors import ConfigError
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.identity import (
    NUM_CLASSES,
    Folders,
    Stored,
    config_text,
    identity,
    note_left_out,
    refuse_other_config,
    refuse_other_data,
    settings,
)
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
    for folder, group in studies.items():
        use_present_folders(Study(folder), group)
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
        folder, data = RunFolder(study.folder / point.name), point.config.data
        refuse_other_config(point.config, folder)
        note_left_out(folder.path, folder.config_text())
        if folder.provenance():
            refuse_other_data(folder, fingerprints(data), data.root)
    statuses = study.current_states([point.name for point in points], write=write)
    for point, status in zip(points, statuses, strict=True):
        refuse_other_queued_data(point, status)
    return statuses


def refuse_other_queued_data(point: Point, status: PointStatus) -> None:
    """Raise ConfigError if the point's job waits or runs on other data, which its folder does not tell yet."""
    if status.submission is None or status.state not in ("queued", "running"):
        return
    file = status.submission.config_file(status.point)
    text = file.read_text() if file.is_file() else None
    if text in (None, point.frozen or config_text(point.config)):  # as it was submitted: nothing is parsed or hashed
        return
    before = Stored(text).config().data
    theirs, ours = fingerprints(before), fingerprints(point.config.data)
    for split in theirs.keys() & ours.keys():
        if theirs[split] != ours[split]:
            raise ConfigError(
                f"point {point.name} is {status.state} on other data: the {split} annotations of {before.root} have "
                f"the fingerprint {theirs[split]}, those of {point.config.data.root} have {ours[split]}; choose "
                "another study=NAME, or cancel it"
            )


def use_present_folders(study: Study, points: Sequence[Point]) -> None:
    """Name each point by the folder or submission that holds its configuration already, whatever that is called."""
    latest = {point: submission for submission in study.submissions() for point in submission.points}
    files = ((point, submission.config_file(point)) for point, submission in latest.items())
    folders = Folders(study.folder, ((point, file.read_text()) for point, file in files if file.is_file()))
    for point in points:
        point.name = folders.name(point.name, point.config)


def refuse_twins(points: Sequence[Point]) -> None:
    """Raise ConfigError for two points that would be one run: equal settings, or one name for a folder."""
    seen: dict[tuple[Path, object], Point] = {}
    for point in points:
        found = settings(point.config)
        for key in (point.name, (identity(found), found[NUM_CLASSES])):
            twin = seen.setdefault((point.study_folder, key), point)
            if twin is not point:
                first, second = (
                    " ".join(word for word in one.typed if word not in other.typed) or one.name
                    for one, other in ((twin, point), (point, twin))
                )
                raise ConfigError(
                    f"two points of this sweep, {first} and {second}, would share the folder "
                    f"{twin.study_folder / twin.name}: their configurations are equal, or differ only in what is not "
                    "part of a run (cluster, paths, ...); nothing was started"
                )


def refuse_missing_data(points: Sequence[Point]) -> None:
    for point in points:
        data = point.config.data
        named = (data.root, data.train.annotations, data.val.annotations)
        if data.name == "coco" and named == (None, None, None):
            raise ConfigError(f"point {point.name}: {NO_ROOT}; nothing was started")


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
