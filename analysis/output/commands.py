"""The command that makes one run again, from its provenance or else from its configuration. Imports no torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from analysis.reading.runs import Run
from analysis.reading.settings import overrides
from fovea_detr.config.overrides import is_several
from fovea_detr.config.schema import CONF_DIR
from fovea_detr.runs.settings import NUM_CLASSES, defaults

SWEEP_ONLY = ("-m", "--multirun")


def command(run: Run) -> str | None:
    """As typed in a shell; None if the run folder does not contain it."""
    words = recorded(run) or from_settings(run)
    return None if words is None else shlex.join(["python", *words])


def recorded(run: Run) -> list[str] | None:
    """Script and arguments as they were typed; those of a sweep for this point alone. None if they do not tell."""
    words = run.provenance.get("command")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return None
    names = [Path(word).name for word in words]
    place = next((i for i, name in enumerate(names) if name.endswith(".py") or name == "fovea-detr"), None)
    if place is None or "study" in Path(words[place]).parts:  # `study relaunch`: its words are of the whole study
        return None
    script, rest = words[place] if names[place] not in ("fovea-detr", "__main__.py") else "run.py", words[place + 1 :]
    if any(word in SWEEP_ONLY for word in rest):
        point = overrides(run.path.name)
        is_cut = not point and run.path.name != "base"  # the full name was too long for a folder
        one = None if is_cut else without_sweep(rest, point)
        return None if one is None else [script, *one]
    return [script, *rest]


def without_sweep(words: Sequence[str], point: dict[str, str]) -> list[str] | None:
    """The sweep's arguments for a single point: without launcher options, with the point's value for each axis.

    None if the folder's name does not show which of several values the point has.
    """
    kept, left = [], dict(point)
    for word in words:
        key, equals, value = word.lstrip("+~").partition("=")
        if word in SWEEP_ONLY or key.startswith(("hydra/", "hydra.")):
            continue
        if key in left and equals:
            same = re.sub(r"[^A-Za-z0-9_.=+-]+", "_", value.strip("'\"")) == left[key]  # as in folder names
            word = word if same else f"{key}={left[key]}"
            del left[key]
        kept.append(word)
    kept += [f"{key}={value}" for key, value in left.items()]
    return None if any(is_several(word) for word in kept) else kept


def from_settings(run: Run) -> list[str] | None:
    """Groups by name, then every value that is not at its default; None without a config.yaml."""
    if not run.has_config or run.as_submitted:
        return None
    changed = {key: value for key, value in run.settings.items() if defaults().get(key) != value and key != NUM_CLASSES}
    groups = {key: value for key, value in changed.items() if (CONF_DIR / key / f"{value}.yaml").is_file()}
    return ["run.py", f"study={run.study}", *(f"{key}={value}" for key, value in (groups | changed).items())]
