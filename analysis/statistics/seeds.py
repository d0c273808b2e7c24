"""Differences between rows by the spread over seeds: pooled, Dunnett, Welch with Holm. AP as fractions or in any unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    low: float
    high: float

    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Spread:
    """The sample standard deviation over seeds, and its degrees of freedom."""

    sd: float
    df: float


@dataclass(frozen=True)
class BySeeds:
    """A difference of two rows' means. level: what is left of 0.05 after the correction for several comparisons."""

    delta: float
    se: float
    df: float
    interval: Interval
    p: float  # corrected
    level: float
    method: str


def pooled(rows: Sequence[Sequence[float]]) -> Spread:
    """The spread within rows of a whole study; rows with one seed add nothing."""
    raise NotImplementedError


def against_baseline(rows: Mapping[str, Sequence[float]], baseline: str) -> dict[str, BySeeds]:
    """Every other row with two seeds or more minus the baseline."""
    raise NotImplementedError
