"""A configuration as a run folder or a submission stores it, which another version of this code may have written.

A key that it lacks has today's default, so that a new key changes no stored run. A key that this version does not have
is left out if it was at its default; the first line of the stored text lists the others. `data.num_classes` is stored
as it was used, with a line of its own if it was set to more than the data needs.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

import yaml
from omegaconf import OmegaConf

from fovea_detr.compose import parse
from fovea_detr.config.schema import AXES, Config, leaves
from fovea_detr.runs.settings import (
    BATCH,
    NUM_CLASSES,
    TOTAL_BATCH,
    Loader,
    Settings,
    as_typed,
    axis_arguments,
    axis_node,
    complete,
    default_axes,
    defaults,
    flat,
)

FORMER_BACKENDS = ("faster_coco_eval",)  # of stored configurations; today's default gives the same numbers
SET_CLASSES = "# data.num_classes was set, not read from the data\n"
CHANGED = "# not at its default: "  # the first line of a stored configuration: the keys that were set
Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def settings_of(text: str) -> dict[str, str]:
    """The settings of a stored configuration, completed with today's defaults. ValueError, YAMLError if it is none."""
    return Stored(text).settings


@dataclass(frozen=True)
class Stored:
    """A configuration as a run folder or a submission stores it. ValueError, YAMLError where the text holds none."""

    text: str

    @cached_property
    def found(self) -> dict[str, str]:
        """Its settings as they were written, those of other versions of the schema included.

        Thousands of files are nearly equal: each distinct top-level entry is parsed once.
        """
        body = re.sub(r"\A(#.*\n)+", "", self.text)
        chunks = re.split(r"^(?=[^\s#])", body, flags=re.MULTILINE)
        try:
            parts = [_entry(chunk) for chunk in chunks if chunk.strip()]
        except (ValueError, yaml.YAMLError):  # not one `key: value` per chunk: a style that no run writes
            parts = [flat(_mapping(self.text))]
        found = {key: value for part in parts for key, value in part.items()}
        if not found:
            raise ValueError("holds no setting")
        return found

    @cached_property
    def changed(self) -> frozenset[str]:
        """The keys that were not at their default when it was written: of its first line, or all if it has none."""
        first = self.text.partition("\n")[0]
        return frozenset(first.removeprefix(CHANGED).split(", ") if first.startswith(CHANGED) else self.found)

    @property
    def has_set_classes(self) -> bool:
        """Whether `data.num_classes` was set to more than the data needs."""
        return SET_CLASSES in self.text

    @property
    def num_classes(self) -> int | None:
        """The number of classes that it was run with, or that was set; None if neither is known."""
        found = self.found.get(NUM_CLASSES, "null")
        return None if found == "null" else int(found)

    @cached_property
    def unknown(self) -> dict[str, str]:
        """Settings whose key today's schema does not have: it was dropped, or is of a newer version."""
        left = {key: value for key, value in self.found.items() if key not in defaults()}
        if not left:
            return left
        names = {axis: self.found.get(axis, "") for axis in AXES}
        own = {key for axis, name in names.items() for key in axis_arguments(axis, name)}
        private = tuple(f"{axis}." for axis, name in names.items() if not axis_node(axis, name))  # its yaml has gone
        return {key: value for key, value in left.items() if key not in own and not key.startswith(private)}

    @property
    def passed_over(self) -> list[str]:
        """Unknown settings that were not at their default, to be shown to the user: `key=value`."""
        return [f"{key}={value}" for key, value in self.unknown.items() if key in self.changed]

    @property
    def settings(self) -> dict[str, str]:
        found = complete({TOTAL_BATCH: _total_before(self.found), **self.found})
        for key in self.unknown.keys() - self.changed:
            del found[key]
        return found

    def config(self) -> Config:
        """As a Config of today's schema, checked again. Raises ConfigError.

        Axes count by name: the class is the one that conf/ names today. Unknown keys are left out.
        """
        content = _pruned(_mapping(self.text), asdict(Config()))
        for axis in AXES:
            stored = content.get(axis) or {}
            today = axis_node(axis, str(stored.get("name", default_axes()[axis])))
            content[axis] = {**today, **_pruned(stored, today), "_target_": today["_target_"]} if today else stored
        if TOTAL_BATCH not in self.found and isinstance(content.get("schedule"), dict):
            total = _total_before(self.found)
            content["schedule"]["total_batch"] = None if total == "null" else int(total)
        if (content.get("evaluation") or {}).get("backend") in FORMER_BACKENDS:
            content["evaluation"]["backend"] = Config().evaluation.backend
        return parse(OmegaConf.create(content))


def _pruned(content: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Without the keys that the schema does not have. An empty node of the schema takes any key."""
    if not schema:
        return content
    return {
        key: _pruned(value, schema[key]) if isinstance(value, dict) and isinstance(schema[key], dict) else value
        for key, value in content.items()
        if key in schema
    }


@lru_cache(maxsize=10_000)
def _entry(chunk: str) -> dict[str, str]:
    entry = _mapping(chunk)
    if len(entry) != 1:
        raise ValueError("more than one entry")
    return flat(entry)


def _mapping(text: str) -> dict[str, Any]:
    value = yaml.load(text, Loader)
    if not isinstance(value, dict):
        raise ValueError("not a configuration")
    return value


def _total_before(found: Settings) -> str:
    """`schedule.total_batch` of a configuration that was stored before there was one: its recipe's, or null.

    The recipe's only if it has the recipe's batch size: the total batch then followed from the number of processes,
    and `refuse_other_batch` compares what it was.
    """
    recipe = leaves(axis_node("schedule", found.get("schedule", defaults()["schedule"])), "schedule")
    follows = as_typed(recipe.get(BATCH)) == found.get(BATCH, defaults()[BATCH])
    return as_typed(recipe.get(TOTAL_BATCH)) if follows else "null"


def config_text(config: Config, *, has_set_classes: bool | None = None) -> str:
    """A configuration as a run folder and a submission store it: YAML, after a line with the keys that were set.

    has_set_classes: whether `data.num_classes` is more than the data needs; None: the data has not been read, and any
    number was set.
    """
    if has_set_classes is None:
        has_set_classes = config.data.num_classes is not None
    values = asdict(config)
    changed = [key for key, value in flat(values).items() if defaults().get(key) != value]
    first = f"{CHANGED}{', '.join(changed)}\n" + SET_CLASSES * has_set_classes
    return first + yaml.dump(values, Dumper=Dumper, sort_keys=False)
