"""How many seeds resolve a difference: n = 2 ((t_.975 + t_.8) s / delta)^2 seeds a row find it with 80 % power."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from analysis.statistics.seeds import LEVEL

POWER = 0.8
MOST = 10_000  # seeds


def plan(delta: float, sd: float, images_se: float = 0.0, level: float = LEVEL) -> int | None:
    """Seeds a row, of two rows alike, at which a true difference of `delta` is resolved with 80 % power.

    sd: over seeds. images_se: the standard error of the difference over images, which no seed makes smaller. None: no
    number of seeds up to MOST does it. All in one unit.
    """
    if (stats.norm.isf(level / 2) + stats.norm.ppf(POWER)) * images_se >= abs(delta):
        return None
    seeds = np.arange(2, MOST + 1)
    found = np.flatnonzero(_smallest(seeds, sd, images_se, level) <= abs(delta))
    return int(seeds[found[0]]) if len(found) else None


def detectable(seeds: int, sd: float, images_se: float = 0.0, level: float = LEVEL) -> float:
    """The smallest true difference that so many seeds a row resolve with 80 % power. ValueError: fewer than 2 seeds."""
    if seeds < 2:
        raise ValueError(f"{seeds} seeds a row have no spread: 2 or more are needed")
    return float(_smallest(np.array([seeds]), sd, images_se, level)[0])


def _smallest(seeds: np.ndarray, sd: float, images_se: float, level: float) -> np.ndarray:
    """[n] numbers of seeds -> [n] differences. Degrees of freedom: 2 (n - 1), by Satterthwaite with the images."""
    by_seeds = 2 * sd**2 / seeds
    whole = by_seeds + images_se**2
    with np.errstate(divide="ignore"):
        df = np.where(by_seeds > 0, 2 * (seeds - 1) * (whole / by_seeds) ** 2, math.inf) if sd else math.inf
    return (stats.t.isf(level / 2, df) + stats.t.ppf(POWER, df)) * np.sqrt(whole)
