"""How many seeds resolve a difference: n = 2 ((t_.975 + t_.8) s / delta)^2 seeds a row find it with 80 % power."""

from __future__ import annotations

import math
from bisect import bisect_left

from analysis.statistics.seeds import LEVEL, beyond

POWER = 0.8
MOST = 10_000  # seeds


def plan(delta: float, sd: float, images_se: float = 0.0, level: float = LEVEL) -> int | None:
    """Seeds a row, of two rows alike, at which a true difference of `delta` is resolved with 80 % power.

    sd: over seeds. images_se: the standard error of the difference over images, which no seed makes smaller. None: no
    number of seeds up to MOST does it. All in one unit.
    """

    def finds_it(seeds: int) -> bool:
        return _smallest(seeds, sd, images_se, level) <= abs(delta)

    if not finds_it(MOST):
        return None
    return bisect_left(range(MOST + 1), True, lo=2, key=finds_it)


def detectable(seeds: int, sd: float, images_se: float = 0.0, level: float = LEVEL) -> float:
    """The smallest true difference that so many seeds a row resolve with 80 % power. ValueError: fewer than 2 seeds."""
    if seeds < 2:
        raise ValueError(f"{seeds} seeds a row have no spread: 2 or more are needed")
    return _smallest(seeds, sd, images_se, level)


def _smallest(seeds: int, sd: float, images_se: float, level: float) -> float:
    """Degrees of freedom: 2 (n - 1), by Satterthwaite with the images, whose own are infinite."""
    by_seeds = 2 * sd**2 / seeds
    whole = by_seeds + images_se**2
    df = 2 * (seeds - 1) * (whole / by_seeds) ** 2 if by_seeds else math.inf
    return (beyond(level / 2, df) + beyond(1 - POWER, df)) * math.sqrt(whole)
