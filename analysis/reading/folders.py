"""The runs of one or more studies: RUNS/STUDY/POINT, and what was submitted and has no folder. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from analysis.reading.progress import Progress, describe
from analysis.reading.runs import Run, read_run
from analysis.reading.settings import SEED, overrides, read_settings
from fovea_detr.errors import UserError, tell
from fovea_detr.runs.folder import FILES
from fovea_detr.runs.state import FOREIGN, Job, standing_of
from fovea_detr.runs.stored import settings_of
from fovea_detr.study import manifest

__all__ = ["Run", "find_runs", "read_run"]


@dataclass(frozen=True)
class Submitted:
    """A point's last submission. frozen: the file of its configuration as it was submitted. end: see read_run."""

    job: str | None = None
    refused: str | None = None
    frozen: Path | None = None
    end: Job | None = None


def find_runs(root: Path, studies: Sequence[str] = ()) -> list[Run]:
    """Every run of these studies, or of all. Raises UserError, one line, if there is none."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name the one that holds the studies: --runs FOLDER")
    present = _folders(root)
    named = list(dict.fromkeys(Path(study).name for study in studies))
    for study in named:
        if study not in present:
            raise UserError(f"no study {study} in {root}; there is {', '.join(present) or 'none'}")
    runs: list[Run] = []
    for study in named or present:
        try:
            found = read_study(root / study)
        except OSError as error:
            tell(f"note: {root / study}: left out, it cannot be read ({error.strerror})")
            continue
        if any(run.standing.word != FOREIGN for run in found):
            runs += found
    if not runs:
        where = ", ".join(str(root / study) for study in named) or str(root)
        raise UserError(f"no runs in {where}: runs are in RUNS/STUDY/POINT; start one, or name RUNS with --runs RUNS")
    complete_names(runs)
    for run in runs:
        run.settings = read_settings(run.settings)
    return runs


def read_study(folder: Path) -> list[Run]:
    submitted = read_manifest(folder)
    present = _folders(folder)
    sent_as = {point: submitted.get(point, Submitted()) for point in present}
    runs = [read_run(folder / point, sent.job, sent.frozen, sent.end) for point, sent in sent_as.items()]
    runs += [missing(folder / point, sent) for point, sent in submitted.items() if point not in present]
    fill_unknown(runs)
    borrow_settings(runs)
    return runs


def is_study(path: Path) -> bool:
    """Whether a folder holds runs, and not studies."""
    return (path / "manifest.jsonl").exists() or any(
        (path / child / file).exists() for child in (_folders(path) if path.is_dir() else ()) for file in FILES
    )


def _folders(path: Path) -> dict[str, None]:
    with os.scandir(path) as entries:
        return dict.fromkeys(sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir()))


def read_manifest(folder: Path) -> dict[str, Submitted]:
    """The last submission of each point. Empty for a study that never used SLURM."""
    try:
        submissions = manifest.read(folder)
    except (OSError, ValueError, KeyError, TypeError):  # of another version, or damaged: the folders remain
        return {}
    found = {}
    for submission in submissions:
        frozen = set(os.listdir(submission.folder)) if submission.folder.is_dir() else set()
        for index, point in enumerate(submission.points):
            job = None if submission.job is None else f"{submission.job}_{index}"
            config = submission.folder / f"{index}.yaml" if f"{index}.yaml" in frozen else None
            found[point] = Submitted(job, submission.refused, config, submission.end_of(point))
    return found


def missing(path: Path, sent: Submitted) -> Run:
    """A point that was submitted and has no folder."""
    standing = standing_of(path, {}, has_result=False, submitted=True)
    if sent.refused:
        standing = replace(standing, reason=f"the queue refused it: {sent.refused}")
    job = f" (job {sent.job})" if sent.job else ""
    try:
        settings = settings_of(sent.frozen.read_text()) if sent.frozen else None
    except (OSError, ValueError, yaml.YAMLError):
        settings = None
    known = settings is not None
    state = describe(standing, {}, Progress()) + job
    return Run(path, settings or overrides(path.name), known, standing, state, as_submitted=known)


def borrow_settings(runs: Sequence[Run]) -> None:
    """A run that ended before its config.yaml takes the settings of the run that differs in the seed alone."""
    others = {without_seed(run.path.name): run for run in runs if run.has_config}
    for run in runs:
        other = None if run.has_config else others.get(without_seed(run.path.name))
        if other is not None:
            run.settings = {**other.settings, SEED: overrides(run.path.name).get(SEED, "0")}


def fill_unknown(runs: Sequence[Run]) -> None:
    """A null of a submitted configuration, to be read from the data, gets the value that all started runs agree on."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for key, value in run.settings.items() if run.has_config and not run.as_submitted else ():
            found.setdefault(key, set()).add(value)
    agreed = {key: next(iter(values)) for key, values in found.items() if len(values) == 1}
    for run in runs:
        if run.as_submitted:
            run.settings |= {
                key: agreed[key] for key, value in run.settings.items() if value == "null" and key in agreed
            }


def without_seed(point: str) -> str:
    return ",".join(part for part in point.split(",") if not part.startswith(f"{SEED}=")) or "base"


def complete_names(runs: Sequence[Run]) -> None:
    """The settings of runs without a config, from names such as `smooth=4`, under the full key that other runs have."""
    known = {key for run in runs if run.has_config for key in run.settings}
    for run in runs:
        if not run.has_config:
            full = {key: [other for other in known if other.endswith(f".{key}")] for key in run.settings.keys() - known}
            run.settings = {(full.get(key) or [key])[0]: value for key, value in run.settings.items()}
