"""Differences between rows by the spread over seeds. Values are fractions: AP 0.41, not 41.

Dunnett's test compares many rows with one baseline (C. W. Dunnett, JASA 1955; scipy.stats.dunnett); Welch's t does not
assume like spreads; Holm's correction is for a few contrasts (S. Holm, Scand. J. Statist. 1979), and Benjamini and
Hochberg's for many, of which a share may be false (JRSS B 1995; their intervals: Benjamini and Yekutieli, JASA 2005).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, variance
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

LEVEL = 0.05
PRELIMINARY = 0.25  # level of the tests before pooling: at 0.05 they find too few unlike spreads of two or three seeds
FLOOR = 0.01  # a row whose mean is below it has not learned: its spread is not that of the others
Values = Sequence[float]


class Interval(NamedTuple):
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Spread:
    """The sample standard deviation over seeds, and its degrees of freedom; NaN and 0 without two seeds of any row."""

    sd: float
    df: float


@dataclass(frozen=True)
class Contrast:
    """A difference, its standard error and the degrees of freedom of that."""

    delta: float
    se: float
    df: float

    @property
    def p(self) -> float:
        """Two-sided, not corrected."""
        return float(2 * special.stdtr(self.df, -abs(self.delta) / self.se))

    def interval(self, level: float = LEVEL) -> Interval:
        half = beyond(level / 2, self.df) * self.se
        return Interval(self.delta - half, self.delta + half)


def beyond(share: float, df: float) -> float:
    """Student's t that this share of its distribution exceeds: scipy.stats.t.isf without its checks of arguments."""
    return -float(special.stdtrit(df, share))


def pooled(rows: Sequence[Values]) -> Spread:
    """The spread within rows of a whole study: s^2 = sum (n - 1) s_k^2 / sum (n - 1)."""
    several = [row for row in rows if len(row) > 1]
    df = sum(len(row) - 1 for row in several)
    squares = sum((len(row) - 1) * variance(row) for row in several)
    return Spread(math.sqrt(squares / df) if df else math.nan, df)


def fit_the_pool(rows: Sequence[Values]) -> list[bool]:
    """Which rows have the spread of the study, so that they share the pooled one when they are compared.

    None if a row is at the floor, or if Bartlett's test finds the spreads unlike (M. S. Bartlett, Proc. R. Soc. 1937):
    it knows the numbers of rows and seeds, so that sds that differ threefold by chance are no matter. Not a row that is
    wider than the others: s_k^2 over their pooled variance, by F (W. G. Cochran, Annals of Eugenics 1941). The level of
    both: H. Bozivich, T. A. Bancroft, H. O. Hartley, Ann. Math. Statist. 1956.
    """
    several = [row for row in rows if len(row) > 1]
    dfs, squares = [len(row) - 1 for row in several], [(len(row) - 1) * variance(row) for row in several]
    if len(several) < 2 or min(map(fmean, several)) < FLOOR or min(squares) == 0:
        return [False] * len(rows)
    if _bartlett(np.array(dfs), np.array(squares)) <= PRELIMINARY:
        return [False] * len(rows)
    places = range(len(several))
    rest_dfs, rests = ([sum(own[:i] + own[i + 1 :]) for i in places] for own in (dfs, squares))
    ratios = [squares[i] / dfs[i] / (rests[i] / rest_dfs[i]) for i in places]
    fits = iter(special.fdtrc(dfs, rest_dfs, ratios) > PRELIMINARY)
    return [len(row) > 1 and bool(next(fits)) for row in rows]


def _bartlett(dfs: np.ndarray, squares: np.ndarray) -> float:
    """The p value of scipy.stats.bartlett, from degrees of freedom and sums of squares: 100 times as fast."""
    df, count = dfs.sum(), len(dfs)
    unlike = df * math.log(squares.sum() / df) - (dfs * np.log(squares / dfs)).sum()
    return float(special.chdtrc(count - 1, unlike / (1 + ((1 / dfs).sum() - 1 / df) / (3 * (count - 1)))))


def contrast(a: Values, b: Values, shared: Spread | None) -> Contrast | None:
    """b minus a, by the spread that rows share, or by Welch. None: a row has one seed, or nothing varies."""
    if min(len(a), len(b)) < 2:
        return None
    delta, parts = fmean(b) - fmean(a), [variance(row) / len(row) for row in (a, b)]
    if shared is not None:
        se, df = shared.sd * math.sqrt(1 / len(a) + 1 / len(b)), shared.df
    else:
        se = math.sqrt(sum(parts))
        weights = sum(part**2 / (len(row) - 1) for part, row in zip(parts, (a, b), strict=True))
        df = sum(parts) ** 2 / weights if weights else 0.0
    return Contrast(delta, se, df) if se > 0 else None


def dunnett_level(rows: Mapping[str, Values], baseline: str) -> float:
    """The level of each comparison with the baseline at which all of them together keep LEVEL.

    `Contrast.interval` at this level, with the pooled spread, is the simultaneous interval of scipy.stats.dunnett.
    """
    others = sorted(len(row) for name, row in rows.items() if name != baseline and len(row) > 1)
    return _dunnett_level(tuple(others), len(rows[baseline])) if len(others) > 1 else LEVEL


@cache
def _dunnett_level(others: tuple[int, ...], baseline: int) -> float:
    """The critical value depends on the numbers of seeds only: taken from samples of these sizes."""
    samples = [np.arange(n, dtype=float) for n in (*others, baseline)]
    draw: dict[str, Any] = {"random_state": np.random.default_rng(0)}  # scipy 1.15 has a second name for it
    test = stats.dunnett(*samples[:-1], control=samples[-1], **draw)
    found, spread = test.confidence_interval(1 - LEVEL), pooled([one.tolist() for one in samples])
    se = spread.sd * math.sqrt(1 / others[0] + 1 / baseline)
    return float(2 * stats.t.sf((found.high[0] - found.low[0]) / 2 / se, spread.df))


def holm_levels(ps: Sequence[float], others: int = 0) -> list[float]:
    """The level of each interval that excludes 0 exactly where Holm's test rejects: LEVEL / (m - i) for the i-th p.

    From the first p that is not rejected on, all have its level. others: comparisons of the same family, judged apart.
    """
    order, levels = np.argsort(ps, kind="stable"), [LEVEL] * len(ps)
    level = 0.0
    for i, place in enumerate(order.tolist()):
        if i == 0 or ps[order[i - 1]] <= level:
            level = LEVEL / (len(ps) + others - i)
        levels[place] = level
    return levels


def discovery_levels(ps: Sequence[float]) -> list[float]:
    """The level R / m * LEVEL, at which R intervals exclude 0: those that Benjamini and Hochberg choose."""
    if len(ps) == 0:
        return []
    rejected = int((stats.false_discovery_control(ps) <= LEVEL).sum())
    return [LEVEL * max(rejected, 1) / len(ps)] * len(ps)
