"""The names of points: which of them a pattern means, and what tells them apart."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence


def matching(points: Iterable[str], pattern: str) -> list[str]:
    """The points that a pattern means: the one of this name, else all that have these overrides, else a glob's.

    `seed=1` and `*seed=1*` are whole overrides, and do not mean seed=11; `seed=1*` means both.
    """
    points = list(points)
    if pattern in points:
        return [pattern]
    overrides = pattern.strip("*,").split(",")
    is_whole = all(re.fullmatch(r"[^=*?[]+=[^*?[]+", override) for override in overrides)
    if is_whole and pattern.startswith("*") == pattern.endswith("*"):
        return [point for point in points if set(overrides) <= set(point.split(","))]
    return [point for point in points if fnmatch.fnmatchcase(point, pattern)]


def labels(points: Sequence[str]) -> dict[str, str]:
    """Each point by the overrides that not all of them have; by its whole name where that would be nothing."""
    parts = [point.split(",") for point in points]
    shared = set(parts[0]).intersection(*parts[1:]) if len(points) > 1 else set[str]()
    short = (",".join(part for part in one if part not in shared) for one in parts)
    return {point: label or point for point, label in zip(points, short, strict=True)}
