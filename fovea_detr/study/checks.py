"""What is checked of a sweep's points against each other and against their study, before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import yaml

from fovea_detr.config.batching import Batching
from fovea_detr.config.local import NO_ROOT
from fovea_detr.config.schema import GENERATED
from fovea_detr.data.readers import fingerprints
from fovea_detr.errors import ConfigError, tell
from fovea_detr.runs.extension import origin_of
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.identity import (
    differences,
    identity,
    note_left_out,
    refuse_other_batch,
    refuse_other_config,
    refuse_other_data,
)
from fovea_detr.runs.points import Folders
from fovea_detr.runs.settings import NUM_CLASSES, settings
from fovea_detr.runs.state import read_or_note
from fovea_detr.runs.stored import Stored, config_text
from fovea_detr.study.folder import Study
from fovea_detr.study.manifest import Point
from fovea_detr.study.standing import PointStatus

SIZES = ("cluster.gpus", "cluster.nodes")  # the total batch follows from them


def points_by_study(points: Sequence[Point]) -> dict[Study, list[Point]]:
    """The points of each study, named by the folder or submission that holds their configuration already."""
    studies: dict[Study, list[Point]] = {}
    for point in points:
        studies.setdefault(Study(point.study_folder), []).append(point)
    for study, group in studies.items():
        use_present_folders(study, group)
    return studies


def checked_states(study: Study, points: Sequence[Point], *, write: bool) -> list[PointStatus]:
    """Where the points stand. RunFolderError if a folder holds a run with another configuration or other data."""
    for point in points:
        refuse_another_run(point)
    statuses = study.current_states([point.name for point in points], write=write)
    for point, status in zip(points, statuses, strict=True):
        if status.standing.is_live:
            compare_with_submission(point, status)
    return statuses


def refuse_another_run(point: Point) -> None:
    """Raise RunFolderError if the point's folder holds a run with another configuration or other data."""
    folder, data = RunFolder(point.study_folder / point.name), point.config.data
    origin_of(point.config, folder)
    if not folder.path.is_dir():
        return
    refuse_other_config(point.config, folder)
    note_left_out(folder.path, folder.config_text())
    if read_or_note("provenance.json", folder.provenance, dict, []):
        refuse_other_data(folder, fingerprints(data), data.root)
        refuse_other_batch(point.config, folder)


def compare_with_submission(point: Point, status: PointStatus) -> None:
    """Refuse other data, and note another configuration, than a point's job was submitted with. Raises ConfigError."""
    text = _submitted_text(point, status)
    if text is not None:
        _refuse_other_data(point, status, text)
        _note_other_config(point, status, text)


def _submitted_text(point: Point, status: PointStatus) -> str | None:
    """The configuration that the point's job runs; None if it is the point's own, or cannot be read."""
    if status.submission is None:
        return None
    with suppress(OSError, ValueError, yaml.YAMLError):
        text = status.submission.config_file(status.point).read_text()
        if text != (point.frozen or config_text(point.config)) and Stored(text).found:
            return text
    return None


def _refuse_other_data(point: Point, status: PointStatus, text: str) -> None:
    """Raise ConfigError if the point's job waits or runs on other data, which its folder does not tell yet.

    text: the configuration that was submitted.
    """
    before = Stored(text).config().data
    theirs, ours = fingerprints(before), fingerprints(point.config.data)
    for split in theirs.keys() & ours.keys():
        if theirs[split] != ours[split]:
            raise ConfigError(
                f"point {point.name} is {status.state} on other data: the {split} annotations of {before.root} have "
                f"the fingerprint {theirs[split]}, those of {point.config.data.root} have {ours[split]}; choose "
                "another study=NAME, or cancel it"
            )


def _note_other_config(point: Point, status: PointStatus, text: str) -> None:
    """Say so if the point's job will run what was submitted, `text`, for conf/ has been edited since."""
    changed = differences(text, point.config)
    if changed:
        old = (
            f"its job runs the configuration of its submission ({'; '.join(changed)}); for today's, cancel it and "
            "give this command again"
        )
        status.standing = replace(status.standing, reason=", ".join(filter(None, (status.reason, old))))


def use_present_folders(study: Study, points: Sequence[Point]) -> None:
    """Name each point by the folder or submission that holds its configuration already, whatever that is called."""
    latest = {point: submission for submission in study.submissions() for point in submission.points}
    files = ((point, submission.config_file(point)) for point, submission in latest.items())
    folders = Folders(
        study.folder, ((point, file.read_text(errors="replace")) for point, file in files if file.is_file())
    )
    for point in points:
        point.name = folders.name(point.name, point.config)
    notes = [note for point in points if (note := folders.shorter(point.name, point.config))]
    if notes:
        tell(f"{notes[0]}{f' (and {len(notes) - 1} more points)' if len(notes) > 1 else ''}")


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
                advice = _advice(first, second) if point.config.schedule.total_batch is None else ""
                raise ConfigError(
                    f"two points of this sweep, {first} and {second}, would share the folder "
                    f"{twin.study_folder / twin.name}: their configurations are equal, or differ only in what is not "
                    f"part of a run (cluster, paths, ...){advice}; nothing was started"
                )


def _advice(first: str, second: str) -> str:
    """How to compare two sizes: `cluster.gpus=4` and `cluster.gpus=8` -> `study=g4`, `study=g8`."""
    key, _, one = first.partition("=")
    other = second.partition("=")[2]
    if key not in SIZES or not other or " " in first + second:
        return ""
    letter = key.rpartition(".")[2][0]
    return (
        f". The total batch changes with {key}, the point's name does not: start two sweeps, "
        f"`study={letter}{one} {first}` and `study={letter}{other} {second}`"
    )


def batching_of(point: Point) -> Batching:
    """With the processes that its job will have. Raises ConfigError if they cannot share its total batch."""
    asked = point.resources
    processes = int(asked.get("nodes") or 1) * int(asked.get("tasks_per_node") or 1)
    try:
        return Batching.of(point.config, processes)
    except ConfigError as error:
        raise ConfigError(f"point {point.name}: {error}; nothing was started") from None


def refuse_missing_data(points: Sequence[Point]) -> None:
    for point in points:
        data = point.config.data
        named = (data.root, data.train.annotations, data.val.annotations)
        if data.name not in GENERATED and named == (None, None, None):
            raise ConfigError(f"point {point.name}: {NO_ROOT}; nothing was started")
