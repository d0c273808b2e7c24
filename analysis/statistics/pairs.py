"""Two rows of the table, and what their seeds and the images say of the difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np

from analysis.statistics.power import MOST, plan
from analysis.statistics.seeds import LEVEL, Contrast, Interval, Spread, contrast


@dataclass(frozen=True)
class Row:
    """One metric of one row of the table, by seed. Values are fractions: AP 0.41, not 41.

    resamples: [seeds, B] of the same seeds, if all of them have matches. split: `Resamples.split` of these.
    """

    values: Sequence[float]
    resamples: np.ndarray | None = None
    split: str = ""


@dataclass(frozen=True)
class Pair:
    """b minus a. shared: the spread of the study, if both rows fit it; None: their own, by Welch."""

    a: Row
    b: Row
    shared: Spread | None

    @property
    def delta(self) -> float:
        return fmean(self.b.values) - fmean(self.a.values)

    @property
    def fewest(self) -> int:
        """The number of seeds of the row that has fewer."""
        return min(len(self.a.values), len(self.b.values))

    @cached_property
    def seeds(self) -> Contrast | None:
        """None: a row has one seed, or nothing varies."""
        return contrast(self.a.values, self.b.values, self.shared)

    @cached_property
    def images(self) -> np.ndarray | None:
        """[B] the difference of the rows' means in each resample; None: not every run has matches of the same split."""
        if self.a.resamples is None or self.b.resamples is None or self.a.split != self.b.split:
            return None
        found = np.mean(self.b.resamples, axis=0) - np.mean(self.a.resamples, axis=0)
        found = found[~np.isnan(found)]
        return found if len(found) > 1 else None

    @property
    def images_se(self) -> float:
        return 0.0 if self.images is None else float(self.images.std(ddof=1))

    @property
    def images_interval(self) -> Interval | None:
        """The percentiles at LEVEL, of this pair alone."""
        if self.images is None:
            return None
        return Interval(*np.quantile(self.images, [LEVEL / 2, 1 - LEVEL / 2]).tolist())

    @property
    def combined(self) -> Contrast | None:
        """SE^2 = s^2 (1/n_a + 1/n_b) + SE_images^2; degrees of freedom by Satterthwaite, infinite for the images."""
        if self.seeds is None or self.images is None:
            return None
        square = self.seeds.se**2 + self.images_se**2
        return Contrast(self.delta, math.sqrt(square), self.seeds.df * (square / self.seeds.se**2) ** 2)

    def needs(self, level: float) -> str:
        """What would resolve this difference at that level with 80 % power."""
        assert self.seeds is not None
        sd = self.seeds.se / math.sqrt(1 / len(self.a.values) + 1 / len(self.b.values))
        seeds = plan(self.delta, sd, self.images_se, level)
        if seeds is not None:
            return f"about {seeds} seeds"
        is_for_images = self.images_se > 0 and plan(self.delta, 0.0, self.images_se, level) is None
        return "no number of seeds: more images" if is_for_images else f"more than {MOST} seeds"
