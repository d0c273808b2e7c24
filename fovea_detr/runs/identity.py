"""The identity of a run: two configurations are one run if their settings are equal.

Not compared: the number of classes that the data has, unless it was set.
Imports no torch: a sweep and a table compare hundreds of runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fovea_detr.config.schema import Config
from fovea_detr.errors import RunFolderError, tell
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.paths import PATHS, absolute
from fovea_detr.runs.settings import BATCH, NUM_CLASSES, TOTAL_BATCH, Settings, settings
from fovea_detr.runs.stored import Stored


def differences(text: str, config: Config) -> list[str]:
    """`key: stored -> now` for every setting that differs between a stored configuration and this one."""
    stored = Stored(text)
    before, now = comparable(stored.settings), comparable(settings(config))
    if now[NUM_CLASSES] == "null" and not stored.has_set_classes:  # not read from the annotations yet
        now[NUM_CLASSES] = before[NUM_CLASSES]
    return [
        f"{key}: {before.get(key, 'none')} -> {now.get(key, 'none')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in stored.unknown
    ]


def comparable(found: Settings) -> dict[str, str]:
    """With absolute paths; with a total batch, the images of one forward pass are no part of the run."""
    paths = {key: absolute(found[key]) or "" for key in PATHS if found.get(key, "null") != "null"}
    has_total = found.get(TOTAL_BATCH, "null") != "null"
    return {key: value for key, value in {**found, **paths}.items() if not (has_total and key == BATCH)}


def identity(found: Settings) -> frozenset[tuple[str, str]]:
    """A key that is equal for two configurations of one run, without the number of classes, which may be unknown."""
    return frozenset(item for item in comparable(found).items() if item[0] != NUM_CLASSES)


def refuse_other_config(config: Config, folder: RunFolder) -> None:
    """Raise RunFolderError, with the difference, if the folder holds a run with another configuration."""
    text = folder.config_text()
    changed = [] if text is None else differences(text, config)
    if changed:
        raise RunFolderError(
            f"{folder.path} holds a run with another configuration ({'; '.join(changed)}): "
            "go back to it, choose another study=NAME, or remove the folder"
        )


def refuse_other_batch(config: Config, folder: RunFolder) -> None:
    """Raise RunFolderError if the folder's run was trained with another total batch than the one that is set.

    Of a run that was stored before there was such a key: its total batch is recorded, not part of its configuration.
    """
    total, done = config.schedule.total_batch, folder.has_result()
    if total is None or config.mode == "eval" or not (done or folder.checkpoint_path.exists()):
        return
    before = ((folder.result() if done else folder.provenance()) or {}).get("total_batch_size", total)
    if before != total:
        raise RunFolderError(
            f"{folder.path} holds a run that was trained with a total batch of {before} images, now it would be "
            f"{total}: choose another study=NAME, or remove the folder"
        )


def note_left_out(where: Path, text: str | None) -> None:
    """Name on stderr the settings of a stored configuration that this version does not have, where they were set."""
    if text is not None and (left_out := Stored(text).passed_over):
        tell(f"note: {where}: left out, for this version does not have them: {', '.join(left_out)}")


def refuse_other_data(folder: RunFolder, fingerprints: Mapping[str, str], root: object) -> None:
    """Raise RunFolderError if the folder's run had other annotations. fingerprints: of today's, by split."""
    before = (folder.provenance() or {}).get("data") or {}
    for split, now in fingerprints.items():
        if before.get(split, now) != now:
            raise RunFolderError(
                f"{folder.path} holds a run on other data: the {split} annotations had the fingerprint {before[split]},"
                f" those of {root or 'the named file'} have {now}; go back to that data, choose another study=NAME, or "
                "remove the folder"
            )
