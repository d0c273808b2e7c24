"""A sweep, from composed points to one array job: what is done is skipped, what is queued or running is left alone."""

from __future__ import annotations

import dataclasses
import getpass
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fovea_detr.config.schema import Config
from fovea_detr.errors import ConfigError, UserError
from fovea_detr.runs.folder import RunFolder, write_text
from fovea_detr.runs.identity import refuse_other_config
from fovea_detr.study import local, queue, sbatch, snapshot
from fovea_detr.study.manifest import Manifest, Submission, job_name, new_id
from fovea_detr.study.status import Standing, adopt, standings

GPU_HOURS_PER_EPOCH = 4.0  # on COCO: 30 minutes on 8 V100, published for the fovea with R50


@dataclass
class Point:
    """A point that is to be: its configuration with every path in full, and what is asked of the queue for it."""

    name: str
    config: Config
    resources: dict[str, Any]
    snapshot: Path | None = None  # the code to run; None: the present one

    @property
    def study_folder(self) -> Path:
        return Path(self.config.runs) / self.config.study


def launch(points: Sequence[Point], kind: str, *, dry_run: bool = False) -> list[Standing]:
    """Submit what is open and print where every point stands. UserError before anything is submitted, or nothing is."""
    refuse_twins(points)
    studies: dict[Path, list[Point]] = {}
    for point in points:
        studies.setdefault(point.study_folder, []).append(point)
    found = [launch_study(Manifest(folder), group, kind, dry_run=dry_run) for folder, group in studies.items()]
    return [standing for group in found for standing in group]


def launch_study(manifest: Manifest, points: Sequence[Point], kind: str, *, dry_run: bool) -> list[Standing]:
    if dry_run:
        stand = look(manifest, points, write=False)
        show_plan(manifest, points, kind, stand)
        return stand
    with manifest.locked() as lock:
        stand = look(manifest, points, write=True)
        for group in together(points, stand):
            code = group[0].snapshot or snapshot.take(manifest.folder, leave_out=data_folders(points))
            submission = prepare(manifest, group, code, kind)
            send(manifest, submission, lock.fileno())
            for standing in stand:
                if standing.point in submission.points:
                    standing.state, standing.job, standing.reason = (
                        "submitted",
                        submission.job_of(standing.point) or "",
                        "",
                    )
    show_table(manifest, stand)
    return stand


def look(manifest: Manifest, points: Sequence[Point], *, write: bool) -> list[Standing]:
    """Where the points stand. RunFolderError if a folder holds another run, or its result."""
    submissions = manifest.read()
    adopt(manifest, submissions, write=write)
    for point in points:
        refuse_other_config(point.config, RunFolder(manifest.folder / point.name))
    return standings(manifest, [point.name for point in points], submissions)


def refuse_twins(points: Sequence[Point]) -> None:
    seen: set[tuple[Path, str]] = set()
    for point in points:
        key = (point.study_folder, point.name)
        if key in seen:
            raise ConfigError(
                f"two points of this sweep would share the folder {key[0] / key[1]}: they differ only in what is no "
                "part of a run (cluster, paths, ...); nothing was submitted"
            )
        seen.add(key)


def together(points: Sequence[Point], stand: Sequence[Standing]) -> list[list[Point]]:
    """The open points, those together that ask the same of the queue and run the same code: an array has one script."""
    groups: dict[str, list[Point]] = {}
    for point, standing in zip(points, stand, strict=True):
        if standing.is_open:
            key = json.dumps([point.resources, str(point.snapshot)], sort_keys=True)
            groups.setdefault(key, []).append(point)
    return list(groups.values())


def data_folders(points: Sequence[Point]) -> list[Path]:
    """Never part of the code, wherever in the checkout they lie."""
    kept = {path for p in points for path in (p.config.runs, p.config.data.root, p.config.data.cache) if path}
    return [Path(path) for path in sorted(kept)]


def new_submission(manifest: Manifest, points: Sequence[Point], code: Path, kind: str, id_: str) -> Submission:
    return Submission(
        id=id_,
        name=job_name(manifest.folder.name, id_),
        points=[point.name for point in points],
        snapshot=str(code),
        kind=kind,
        command=sbatch.user_command(),
        user=getpass.getuser(),
        time=time.time(),
        resources=points[0].resources,
    )


def prepare(manifest: Manifest, points: Sequence[Point], code: Path, kind: str) -> Submission:
    """Everything a job will read, on disk: configurations, and the states of the points; then the manifest's line."""
    submission = new_submission(manifest, points, code, kind, new_id())
    folder = manifest.submission_folder(submission.id)
    folder.mkdir(parents=True)
    for n, point in enumerate(points):
        (folder / f"{n}.yaml").write_text(frozen(point.config))
    write_text(folder / "submission.json", json.dumps(dataclasses.asdict(submission), indent=2) + "\n")
    manifest.will_submit(submission)
    for point in points:
        RunFolder(manifest.folder / point.name).write_state("queued", submission=submission.id)
    return submission


def send(manifest: Manifest, submission: Submission, lock: int) -> None:
    """To the queue. If sbatch fails, SLURM is asked whether it has the job all the same: its answer may be lost."""
    if submission.kind == "local":
        manifest.was_submitted(submission, local.send(manifest, submission))
        return
    try:
        job = sbatch.send(manifest, submission, lock)
    except queue.SlurmError as error:
        adopt(manifest, [submission], write=True)
        if submission.job is None:
            for point in submission.points:
                RunFolder(manifest.folder / point).write_state("failed", reason=f"not submitted: {error}")
            raise UserError(f"nothing was submitted: {error}") from None
    else:
        manifest.was_submitted(submission, job)


def frozen(config: Config) -> str:
    """The configuration as a job reads it; libyaml, because a sweep writes hundreds."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(dataclasses.asdict(config), Dumper=dumper, sort_keys=False)


def show_plan(manifest: Manifest, points: Sequence[Point], kind: str, stand: Sequence[Standing]) -> None:
    """What would be submitted: the scripts, the points with their states, the bill."""
    groups = together(points, stand)
    for n, group in enumerate(groups):
        code = group[0].snapshot or manifest.folder / ".snapshots" / "DRYRUN"
        if kind == "slurm":
            print(sbatch.script(manifest, new_submission(manifest, group, code, kind, f"DRYRUN{n}")))
    show_table(manifest, stand)
    chosen = [point.config for group in groups for point in group]
    if chosen:
        print("\n".join(cost_lines(chosen)))
    print("dry run: nothing was submitted or written")


def show_table(manifest: Manifest, stand: Sequence[Standing]) -> None:
    width = max(len(standing.point) for standing in stand)
    for standing in stand:
        job = f"job {standing.job}" if standing.job else ""
        print(f"{standing.point:{width}}  {standing.state:9}  {job:10}  {standing.reason}".rstrip())
    counts: dict[str, int] = {}
    for standing in stand:
        counts[standing.state] = counts.get(standing.state, 0) + 1
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    nothing = "" if counts.get("submitted") or any(s.is_open for s in stand) else "nothing to submit: "
    print(f"{manifest.folder}: {nothing}{summary}", flush=True)


def hours_by_schedule(config: Config) -> float | None:
    """GPU-hours of a run from its schedule; None where nothing is known of the data set or the work."""
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
    """The bill of some points."""
    known = [hours for config in configs if (hours := hours_by_schedule(config)) is not None]
    unknown = len(configs) - len(known)
    total, most = sum(known), sum(hours_at_most(config) for config in configs)
    guess = f"{total:g} GPU-hours by schedule (30 minutes an epoch of COCO on 8 V100)"
    if unknown:
        guess += f", and {unknown} point{'s' if unknown > 1 else ''} whose length is not known beforehand"
    if all(config.device == "cpu" for config in configs):
        guess = "no GPU-hours (device=cpu)"
    return [f"cost: {guess}", f"at most {most:g} GPU-hours until the time limit of the first start"]
