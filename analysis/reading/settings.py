"""The settings of runs in a table: the leaves of config.yaml as text, and which of them need a column. No torch.

No axis is named here: a setting is any leaf, and a node with a `name` is one setting, its name. How a stored
configuration becomes settings: fovea_detr/runs/settings.py and stored.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from fovea_detr.config.checks import unread
from fovea_detr.config.schema import AXES
from fovea_detr.runs.settings import Settings

SEED = "seed"  # the one leaf that repeats a configuration instead of making another one


def overrides(point: str) -> dict[str, str]:
    """The overrides in a folder's name, by key."""
    return {key: value for key, equals, value in (part.partition("=") for part in point.split(",")) if equals}


def read_settings(settings: dict[str, str]) -> dict[str, str]:
    """Without those that the run's model or mode does not read."""
    keys = unread(settings)
    below = tuple(f"{key}." for key in keys)
    return {key: value for key, value in settings.items() if key not in keys and not key.startswith(below)}


def leaf(settings: Settings, name: str) -> str | None:
    """The value of the first key whose last part is this name, of any node: `epochs`, `lr_drop`."""
    return next((value for key, value in settings.items() if key.rpartition(".")[2] == name), None)


def last_epoch(settings: Settings) -> str | None:
    """With which a run is to end: `extend`, else `schedule.epochs`."""
    extend = leaf(settings, "extend")
    return leaf(settings, "epochs") if extend in (None, "null") else extend


def varying_keys(rows: Sequence[Settings], by_hand: set[str]) -> list[str]:
    """The settings that differ between rows and do not follow from another one that is shown.

    A setting inside a group (`model.heads`) follows if the group's name determines its value, and a copy of another
    (`evaluation.batch_size`, of the schedule's) if that one follows or was set by hand. Always shown: settings set by
    hand, and those of another group that vary in the same way, since the comparison is then confounded. A setting that
    a row lacks has no value.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    values = {key: [row.get(key) for row in rows] for key in keys}
    varying = {key: column for key in keys if len(set(column := values[key]) - {None}) > 1}

    def by_group(key: str) -> bool:
        groups = [group for group in varying if key.startswith(f"{group}.")]
        return any(_determines(varying[group], varying[key]) for group in groups)

    def is_copy(key: str) -> bool:
        twins = [twin for twin in varying if twin != key and twin.split(".")[-1] == key.split(".")[-1]]
        return any(twin in by_hand or by_group(twin) for twin in twins if varying[twin] == varying[key])

    shown = [key for key in varying if key in by_hand or not (by_group(key) or is_copy(key))]
    groups = {key.partition(".")[0] for key in keys if "." in key} | set(AXES)
    return sorted(shown, key=lambda key: (key == SEED, key.partition(".")[0] not in groups))


def _determines(group: Iterable[str | None], column: Iterable[str | None]) -> bool:
    """Whether each value of the group has a single value in the column."""
    pairs = {pair for pair in zip(group, column, strict=True) if None not in pair}
    return len(pairs) <= len({name for name, _ in pairs})


def short_name(key: str, keys: Iterable[str], reserved: set[str]) -> str:
    """The shortest end of a key that no other key or node ends in: `fovea.smooth` -> `smooth`."""
    paths = [other.split(".") for other in keys]
    nodes = {".".join(path[:end]) for path in paths for end in range(1, len(path) + 1)}
    parts = key.split(".")
    for start in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[start:])
        if name not in reserved and not any(f".{node}".endswith(f".{name}") for node in nodes - {key}):
            return name
    return key


def labels(rows: Sequence[Settings], keys: Sequence[str]) -> list[str]:
    """`type3, smooth=8`: what the varying keys are, only the value if it is a word that no other key has."""
    words = Counter(word for key in keys for word in {row.get(key) for row in rows})
    last = Counter(key.rpartition(".")[2] for key in keys)

    def part(key: str, value: str) -> str:
        is_plain = words[value] == 1 and not re.fullmatch(r"[\d.e+-]+|true|false|null|none", value)
        name = key.rpartition(".")[2]
        return value if is_plain else f"{name if last[name] == 1 else key}={value}"

    return [", ".join(part(key, row[key]) for key in keys if key in row) for row in rows]
