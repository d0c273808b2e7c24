"""What makes two runs the same point of a study. Imports no torch: a sweep asks it for hundreds of points."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf

from fovea_detr.config.schema import Config, is_infrastructure, leaves
from fovea_detr.errors import RunFolderError
from fovea_detr.runs.folder import RunFolder

PATHS = ("weights", "model.backbone_weights")  # part of what a run is; the other paths only say where things lie
NAMES = ("imagenet", "none")


def point_name(overrides: Sequence[str]) -> str:
    """The run folder's name: the sorted overrides that make the run what it is, `dynamic_scale=type3,seed=1`.

    Study, sweep and infrastructure keys are left out; no override at all is `base`. A name that a file system would
    refuse (over 180 characters) is cut and closed with a hash of the whole.
    """
    kept = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key != "sweeps" and not is_infrastructure(key):
            kept.append(f"{key}={re.sub(r'[^A-Za-z0-9_.=+-]+', '_', value.strip(chr(39) + chr(34)))}")
    name = ",".join(sorted(kept)) or "base"
    if len(name) > 180:
        name = f"{name[:165]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


def absolute(path: str | None) -> str | None:
    """The path whatever the working directory will be; None and the names of weights stay."""
    return path if path is None or path in NAMES else os.path.abspath(os.path.expanduser(path))


def with_absolute_weights(config: Config) -> Config:
    """A run is the same from the shell and from SLURM, and from whatever folder: its files are named in full."""
    model = replace(config.model, backbone_weights=absolute(config.model.backbone_weights))
    return replace(config, weights=absolute(config.weights), model=model)


def with_absolute_paths(config: Config) -> Config:
    """For a job, which starts in another folder and on another machine: every path in full."""
    data = replace(config.data, root=absolute(config.data.root), cache=absolute(config.data.cache))
    return replace(with_absolute_weights(config), data=data, runs=absolute(config.runs))


def differences(text: str, config: Config) -> list[str]:
    """What the folder's config.yaml says otherwise than this configuration, less what is only infrastructure."""
    before, now = leaves(OmegaConf.to_container(OmegaConf.create(text))), leaves(config)
    if now["data.num_classes"] is None:  # not read from the annotations yet
        now["data.num_classes"] = before.get("data.num_classes")
    return [
        f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if not is_infrastructure(key) and _comparable(key, before) != _comparable(key, now)
    ]


def _comparable(key: str, values: dict[str, Any]) -> Any:
    return absolute(values.get(key)) if key in PATHS else values.get(key)


def refuse_other_config(config: Config, folder: RunFolder) -> None:
    text = folder.config_text()
    changed = [] if text is None else differences(text, config)
    if changed:
        raise RunFolderError(
            f"{folder.path} holds a run with another configuration ({'; '.join(changed)}): "
            "go back to it, choose another study=NAME, or remove the folder"
        )
