"""The settings of a configuration: its leaves as they would be typed on the command line, and today's defaults of them.

A node with a `name` (a group, an axis) counts by that name. Infrastructure (paths, cluster, device) and `_target_` (a
renamed class is the same run) are no settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

import yaml

from fovea_detr.config.schema import AXES, CONF_DIR, Config, is_infrastructure, leaves

NUM_CLASSES = "data.num_classes"
EPOCHS, BATCH, TOTAL_BATCH = "schedule.epochs", "schedule.batch_size", "schedule.total_batch"
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is ten times faster, where libyaml is there
Settings = Mapping[str, str]


def settings(config: Config) -> dict[str, str]:
    """A configuration's settings by key: `{"dynamic_scale": "type2", "fovea.smooth": "8", ...}`."""
    return complete(flat(asdict(config)))


def flat(config: dict[str, Any]) -> dict[str, str]:
    found = {}
    for key, value in leaves(config).items():
        node, _, last = key.rpartition(".")
        if not is_infrastructure(key) and last != "_target_":
            found[node if node and last == "name" else key] = as_typed(value)
    return found


def as_typed(value: Any) -> str:
    """As it would be typed on the command line."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def complete(found: dict[str, str]) -> dict[str, str]:
    """With today's default for every key that is not there, in the schema's order."""
    arguments = (axis_arguments(axis, found.get(axis, default)) for axis, default in default_axes().items())
    return defaults() | {key: value for one in arguments for key, value in one.items()} | found


@cache
def defaults() -> dict[str, str]:
    """Of every key of the schema, axes by name."""
    values = asdict(Config())
    nodes = ({axis: {"name": default_axes()[axis]}} if axis in AXES else {axis: values[axis]} for axis in values)
    return {key: value for node in nodes for key, value in flat(node).items()}


@cache
def default_axes() -> dict[str, str]:
    """The value of each axis in the defaults list of conf/config.yaml."""
    root = yaml.load((CONF_DIR / "config.yaml").read_text(), Loader)
    chosen = {key: str(value) for entry in root["defaults"] if isinstance(entry, dict) for key, value in entry.items()}
    return {axis: chosen[axis] for axis in AXES}


@cache
def axis_node(axis: str, name: str) -> dict[str, Any]:
    """The content of conf/<axis>/<name>.yaml; empty if there is no such file any more."""
    path = CONF_DIR / axis / f"{name}.yaml"
    return yaml.load(path.read_text(), Loader) if path.is_file() else {}


@cache
def axis_arguments(axis: str, name: str) -> dict[str, str]:
    return {key: value for key, value in flat({axis: axis_node(axis, name)}).items() if key != axis}
