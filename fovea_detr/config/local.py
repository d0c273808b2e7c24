"""conf/local.yaml: where this user's data lies and what this site's cluster is like; never part of a run's identity.

Precedence: the command line, the environment variable COCO_ROOT (for data=coco), conf/local.yaml, the rest of conf/.
Generated data (data=shapes) takes nothing from it, so that the demo is the same everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fovea_detr.config.schema import CONF_DIR, GENERATED, Config, is_infrastructure, leaves
from fovea_detr.errors import ConfigError

FILE = "FOVEA_LOCAL"  # an environment variable: another file instead; empty: no file
ROOT = "COCO_ROOT"
OF_A_COMMAND = ("runs", "study")  # no part of a run's identity either, but the tables are read from there
NO_ROOT = (
    "data.root is not set: add data.root=FOLDER, or name the folder once for all commands, in conf/local.yaml "
    f"(copy conf/local.example.yaml) or in the environment variable {ROOT}"
)


def with_local(composed: DictConfig, typed: Sequence[str]) -> DictConfig:
    """Set the personal values in a composed configuration where the command line has none. typed: its overrides.

    A cluster that is named on the command line is taken whole. Raises ConfigError.
    """
    name = OmegaConf.select(composed, "data.name")
    if name in GENERATED:
        return composed
    given = {override.lstrip("+~").partition("=")[0] for override in typed}
    values = local_values()
    if os.environ.get(ROOT) and name in ("coco", "coco_panoptic"):
        values["data.root"] = os.environ[ROOT]
    named = ("data.root", "data.train.annotations", "data.val.annotations")
    if any(OmegaConf.select(composed, key) for key in named):
        values.pop("data.root", None)
    for key, value in values.items():
        if key not in given and not (key.startswith("cluster.") and "cluster" in given):
            OmegaConf.update(composed, key, value, force_add=True)
    return composed


def local_values() -> dict[str, Any]:
    """The leaves of the personal file by their keys; none if there is no file. Raises ConfigError."""
    name = os.environ.get(FILE)
    path = CONF_DIR / "local.yaml" if name is None else Path(name)
    if name == "" or (name is None and not path.is_file()):
        return {}
    try:
        content = OmegaConf.load(path)
        if isinstance(content, DictConfig) and isinstance(content.get("cluster"), str):
            content.cluster = OmegaConf.load(CONF_DIR / "cluster" / f"{content.cluster}.yaml")
        OmegaConf.merge(OmegaConf.structured(Config), content)  # names and types
        values = leaves(OmegaConf.to_container(content, resolve=True))
    except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, TypeError) as error:
        text = str(error).partition("\n    full_key:")[0]
        raise ConfigError(f"{path}: {' '.join(text.split())}; see conf/local.example.yaml") from None
    for key in values:
        if not is_infrastructure(key) or key in OF_A_COMMAND:
            raise ConfigError(
                f"{path}: {key} may not stand there, only what says where and how runs are carried out (data.root, "
                "data.workers, device, threads, tracker, cluster); give it on the command line or in conf/experiment/"
            )
    return values
