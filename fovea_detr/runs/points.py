"""The points of a study and their folders: the name of a new one, and the one that holds a run already."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import yaml

from fovea_detr.config.schema import Config, is_infrastructure
from fovea_detr.runs.identity import differences, identity
from fovea_detr.runs.settings import EPOCHS, settings
from fovea_detr.runs.stored import Stored

LONGEST_NAME = 180  # characters of a folder's name
QUOTES = "'" + '"'


def point_name(overrides: Sequence[str]) -> str:
    """The name of a new run folder: its sorted overrides, `dynamic_scale=type3,seed=1`; `base` without any.

    Study, sweep and infrastructure keys are left out; of a repeated key the last one counts. A name longer than
    LONGEST_NAME is cut and ends in a hash of the whole.
    """
    typed = {key: value for key, _, value in (override.lstrip("+~").partition("=") for override in overrides)}
    kept = {key: value for key, value in typed.items() if key != "sweeps" and not is_infrastructure(key)}
    parts = (f"{key}={re.sub(r'[^A-Za-z0-9_.=+-]+', '_', value.strip(QUOTES))}" for key, value in kept.items())
    name = ",".join(sorted(parts)) or "base"
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 15]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


class Folders:
    """The run folders of a study by the configuration that each holds.

    submitted: (name, stored configuration) of points that may have no folder yet.
    """

    def __init__(self, study_folder: Path, submitted: Iterable[tuple[str, str]] = ()) -> None:
        self._texts = dict(submitted)
        for path in sorted(study_folder.glob("*/config.yaml")):
            self._texts[path.parent.name] = path.read_text(errors="replace")
        self._names: dict[frozenset[tuple[str, str]], list[str]] = {}
        for name, text in self._texts.items():
            with suppress(ValueError, yaml.YAMLError):  # a damaged file belongs to no run
                stored = Stored(text)
                known = {key: value for key, value in stored.settings.items() if key not in stored.unknown}
                self._names.setdefault(identity(known), []).append(name)

    def shorter(self, name: str, config: Config) -> str | None:
        """A line for a new folder of this name, if another one holds the same run with fewer epochs."""
        now = identity(settings(config))
        found = [] if name in self._texts else self._by_rest.get(_without_epochs(now), [])
        epochs = [n for n in found if n < config.schedule.epochs]
        if not epochs:
            return None
        other = next(iter(self._names[_without_epochs(now) | {(EPOCHS, str(max(epochs)))}]))
        return (
            f"note: {other} is this run with {EPOCHS}={max(epochs)}; with {EPOCHS}={config.schedule.epochs} it starts "
            f"afresh, in a folder of its own; to go on from that one's final state: {EPOCHS}={max(epochs)} "
            f"extend={config.schedule.epochs}"
        )

    @cached_property
    def _by_rest(self) -> dict[frozenset[tuple[str, str]], list[int]]:
        """The numbers of epochs for which there is a folder, by all other settings."""
        found: dict[frozenset[tuple[str, str]], list[int]] = {}
        for key in self._names:
            found.setdefault(_without_epochs(key), []).append(int(dict(key)[EPOCHS]))
        return found

    def name(self, new: str, config: Config) -> str:
        """The name of the folder that holds this configuration; `new` if that is one of them, or if there is none.

        A folder whose run had a setting that this version does not have, other than its default, is found by its own
        name only: it is another model.
        """
        found = [
            name
            for name in self._names.get(identity(settings(config)), [])
            if not differences(self._texts[name], config)  # the number of classes, if it is set
            and (name == new or not Stored(self._texts[name]).passed_over)
        ]
        return new if new in found or not found else found[0]


def _without_epochs(key: frozenset[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    return frozenset(item for item in key if item[0] != EPOCHS)
