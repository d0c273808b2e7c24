"""Labels of runs in figures, from the settings that vary. No axis is named here, except the seed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from analysis.reading import settings as columns
from analysis.reading.settings import SEED, overrides
from fovea_detr.runs.identity import Settings


def varying_keys(settings: Sequence[Settings], run_names: Sequence[str]) -> list[str]:
    """The keys that are columns of the table, without the seed."""
    by_hand = {key for name in run_names for key in overrides(name)}
    return [key for key in columns.varying_keys(settings, by_hand) if key != SEED]


def name_variants(settings: Sequence[Settings], run_names: Sequence[str]) -> list[str]:
    """One label per run; runs that differ only in their seed share it.

    A label shows the overrides in the run's name if these contain every difference; a run without any is `base`.
    Otherwise (for example, runs of two experiments) it shows every varying setting.
    """
    keys = varying_keys(settings, run_names)
    if not keys:
        return ["all runs"] * len(settings)
    full = [_label(one, keys, keys, settings) for one in settings]
    hands: dict[str, set[str]] = {label: set() for label in full}
    for label, name in zip(full, run_names, strict=True):
        hands[label] |= {key for key in keys for hand in overrides(name) if _is_same(key, hand)}
    if set().union(*hands.values()) != set(keys):
        return full
    shown = [[key for key in keys if key in hands[label]] for label in full]
    short = [_label(one, own, keys, settings) or "base" for one, own in zip(settings, shown, strict=True)]
    return short if len(set(short)) == len(set(full)) else full


def _label(one: Settings, shown: Sequence[str], keys: Sequence[str], settings: Sequence[Settings]) -> str:
    """`type3, smooth=8`: only the value if it is a word that no other varying key has."""
    words = Counter(word for key in keys for word in {str(other.get(key)) for other in settings})
    names = Counter(key.split(".")[-1] for key in keys)
    parts = []
    for key in shown:
        value, last = one.get(key, "?"), key.split(".")[-1]
        is_plain = words[value] == 1 and not re.fullmatch(r"[\d.e+-]+|true|false|null|none|\?", value)
        parts.append(value if is_plain else f"{last if names[last] == 1 else key}={value}")
    return ", ".join(parts)


def _is_same(key: str, hand: str) -> bool:
    """Whether the override key `hand` sets `key`: the group `smooth` sets `fovea.smooth`."""
    return key == hand or key.endswith(f".{hand}")
