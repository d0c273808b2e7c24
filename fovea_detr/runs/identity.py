"""The identity of a run: the settings of its configuration, by which its folder is named, found and compared.

Two configurations are one run if their settings are equal. A setting is a leaf of the configuration, as it would be
typed on the command line; a node with a `name` (a group, an axis) counts by that name. Not compared: infrastructure
(paths, cluster, device), `_target_` (a renamed class is the same run), and the number of classes that the data has:
`data.num_classes` is stored as it was used, with a line of its own if it was set to more than the data needs.
A key that a stored configuration lacks has today's default, so that a new key changes no stored run. A stored key that
this version does not have is left out if it was at its default; the first line of the stored file lists the others.

Imports no torch: a sweep and a table compare hundreds of runs.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from fovea_detr.compose import parse
from fovea_detr.config.schema import AXES, CONF_DIR, Config, Data, SplitFiles, is_infrastructure, leaves
from fovea_detr.errors import RunFolderError, tell
from fovea_detr.runs.folder import RunFolder

PATHS = ("weights", "model.backbone_weights")  # paths that belong to the identity; the others are infrastructure
WEIGHTS_NAMES = ("imagenet", "none")
FORMER_BACKENDS = ("faster_coco_eval",)  # of stored configurations; today's default gives the same numbers
NUM_CLASSES = "data.num_classes"
EPOCHS, BATCH, TOTAL_BATCH = "schedule.epochs", "schedule.batch_size", "schedule.total_batch"
SET_CLASSES = "# data.num_classes was set, not read from the data\n"
CHANGED = "# not at its default: "  # the first line of a stored configuration: the keys that were set
LONGEST_NAME = 180  # characters of a folder's name
QUOTES = "'" + '"'
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is ten times faster, where libyaml is there
Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
Settings = Mapping[str, str]


# ---- settings --------------------------------------------------------------------------------------------------------


def settings(config: Config) -> dict[str, str]:
    """A configuration's settings by key: `{"dynamic_scale": "type2", "fovea.smooth": "8", ...}`."""
    return _complete(_settings(asdict(config)))


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
            parts = [_settings(_mapping(self.text))]
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
        found = _complete({TOTAL_BATCH: _total_before(self.found), **self.found})
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
    return _settings(entry)


def _mapping(text: str) -> dict[str, Any]:
    value = yaml.load(text, Loader)
    if not isinstance(value, dict):
        raise ValueError("not a configuration")
    return value


def _settings(config: dict[str, Any]) -> dict[str, str]:
    found = {}
    for key, value in leaves(config).items():
        node, _, last = key.rpartition(".")
        if not is_infrastructure(key) and last != "_target_":
            found[node if node and last == "name" else key] = as_typed(value)
    return found


def _complete(found: dict[str, str]) -> dict[str, str]:
    """With today's default for every key that is not there, in the schema's order."""
    arguments = (axis_arguments(axis, found.get(axis, default)) for axis, default in default_axes().items())
    return defaults() | {key: value for one in arguments for key, value in one.items()} | found


def _total_before(found: Settings) -> str:
    """`schedule.total_batch` of a configuration that was stored before there was one: its recipe's, or null.

    The recipe's only if it has the recipe's batch size: the total batch then followed from the number of processes,
    and `refuse_other_batch` compares what it was.
    """
    recipe = leaves(axis_node("schedule", found.get("schedule", defaults()["schedule"])), "schedule")
    follows = as_typed(recipe.get(BATCH)) == found.get(BATCH, defaults()[BATCH])
    return as_typed(recipe.get(TOTAL_BATCH)) if follows else "null"


def as_typed(value: Any) -> str:
    """As it would be typed on the command line."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


# ---- today's defaults ------------------------------------------------------------------------------------------------


@cache
def defaults() -> dict[str, str]:
    """Of every key of the schema, axes by name."""
    values = asdict(Config())
    nodes = ({axis: {"name": default_axes()[axis]}} if axis in AXES else {axis: values[axis]} for axis in values)
    return {key: value for node in nodes for key, value in _settings(node).items()}


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
    return {key: value for key, value in _settings({axis: axis_node(axis, name)}).items() if key != axis}


def config_text(config: Config, *, has_set_classes: bool | None = None) -> str:
    """A configuration as a run folder and a submission store it: YAML, after a line with the keys that were set.

    has_set_classes: whether `data.num_classes` is more than the data needs; None: the data has not been read, and any
    number was set.
    """
    if has_set_classes is None:
        has_set_classes = config.data.num_classes is not None
    values = asdict(config)
    changed = [key for key, value in _settings(values).items() if defaults().get(key) != value]
    first = f"{CHANGED}{', '.join(changed)}\n" + SET_CLASSES * has_set_classes
    return first + yaml.dump(values, Dumper=Dumper, sort_keys=False)


# ---- comparing -------------------------------------------------------------------------------------------------------


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


# ---- paths -----------------------------------------------------------------------------------------------------------


def absolute(path: str | None) -> str | None:
    """The absolute path; None and the names of weights are returned unchanged."""
    return path if path is None or path in WEIGHTS_NAMES else os.path.abspath(os.path.expanduser(path))


def with_absolute_weights(config: Config) -> Config:
    """With absolute paths of the weights: a run is the same from the shell, from SLURM and from any folder."""
    model = replace(config.model, backbone_weights=absolute(config.model.backbone_weights))
    return replace(config, weights=absolute(config.weights), model=model)


def with_absolute_paths(config: Config) -> Config:
    """With every path absolute, for a job, which starts in another folder and on another machine."""
    data = replace(
        config.data,
        root=absolute(config.data.root),
        panoptic_root=absolute(config.data.panoptic_root),
        cache=absolute(config.data.cache),
        train=_absolute_files(config.data, config.data.train),
        val=_absolute_files(config.data, config.data.val),
    )
    return replace(with_absolute_weights(config), data=data, runs=absolute(config.runs))


def _absolute_files(data: Data, files: SplitFiles) -> SplitFiles:
    return SplitFiles(*(path and absolute_split_path(data, path) for path in (files.annotations, files.images)))


def absolute_split_path(data: Data, path: str) -> str:
    """A path of data.train or data.val in full: relative to data.root, or to the working directory without one."""
    return os.path.abspath(os.path.join(os.path.expanduser(data.root or ""), os.path.expanduser(path)))


# ---- the folder of a run ---------------------------------------------------------------------------------------------


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


def identity(found: Settings) -> frozenset[tuple[str, str]]:
    """A key that is equal for two configurations of one run, without the number of classes, which may be unknown."""
    return frozenset(item for item in comparable(found).items() if item[0] != NUM_CLASSES)
