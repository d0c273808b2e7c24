"""Intervals and levels against scipy by hand, and against slow twins."""

from __future__ import annotations

import math
from statistics import fmean, stdev, variance
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.power import MOST, detectable, plan
from analysis.statistics.seeds import (
    LEVEL,
    _bartlett,
    contrast,
    discovery_levels,
    dunnett_level,
    fit_the_pool,
    holm_levels,
    pooled,
)


def rows(seed: int, *sds: float, n: int = 5, mean: float = 0.4) -> dict[str, list[float]]:
    draw = np.random.default_rng(seed)
    return {f"row {i}": (mean + 0.01 * i + draw.normal(0, sd, n)).tolist() for i, sd in enumerate(sds)}


def test_the_pooled_spread_is_that_of_an_analysis_of_variance() -> None:
    values = [*rows(0, 0.01, 0.02, 0.01).values(), [0.5], [0.1, 0.2]]
    several = [row for row in values if len(row) > 1]
    within = sum(sum((value - fmean(row)) ** 2 for value in row) for row in several)
    found = pooled(values)
    assert found.df == 4 + 4 + 4 + 0 + 1
    assert found.sd == pytest.approx(math.sqrt(within / 13), rel=1e-12)
    assert math.isnan(pooled([[0.1], [0.2]]).sd)


def fits_by_hand(rows: list[list[float]]) -> list[bool]:
    """Bartlett's test by scipy, and Cochran's ratio written out."""
    if stats.bartlett(*rows).pvalue <= 0.25:
        return [False] * len(rows)
    v, df = np.array([stdev(row) ** 2 for row in rows]), np.array([len(row) - 1 for row in rows])
    rest = ((df * v).sum() - df * v) / (df.sum() - df)
    return (stats.f.sf(v / rest, df, df.sum() - df) > 0.25).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_rows_fit_the_pool_as_by_hand(seed: int) -> None:
    made = [*rows(seed, *[0.01] * 6, n=2).values(), *rows(seed + 100, 0.01, 0.02, n=4).values()]
    found = fit_the_pool([*made, [0.4]])
    assert found == [*fits_by_hand(made), False], "one seed has no spread"
    dfs, squares = np.array([len(row) - 1 for row in made]), [(len(row) - 1) * variance(row) for row in made]
    assert _bartlett(dfs, np.array(squares)) == pytest.approx(stats.bartlett(*made).pvalue, rel=1e-9)


@pytest.mark.parametrize("count", [4, 16])
def test_how_many_alike_rows_fit_does_not_depend_on_their_number(count: int) -> None:
    """Of two seeds: in nearly all studies of 16 rows some spreads differ threefold by chance."""
    made = [list(rows(seed, *[0.01] * count, n=2).values()) for seed in range(200)]
    ratios = [max(map(stdev, study)) / min(map(stdev, study)) for study in made]
    assert np.mean([ratio > 3 for ratio in ratios]) > (0.75 if count == 4 else 0.99)
    assert 0.5 < np.mean([fit_the_pool(study) for study in made]) < 0.7


def test_no_row_fits_beside_one_at_the_floor_or_without_spread() -> None:
    alike = [[0.4, 0.41, 0.42]] * 4
    assert fit_the_pool(alike) == [True] * 4
    for other in ([0.001, 0.002, 0.0], [0.3, 0.3, 0.3]):
        assert fit_the_pool([*alike, other]) == [False] * 5
    assert fit_the_pool([[0.4, 0.41]]) == [False], "nothing to pool it with"


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("count", [3, 4, 11])
def test_many_rows_against_a_baseline_are_scipys_dunnett(count: int, n: int) -> None:
    made = rows(count, *[0.01] * count, n=n)
    baseline, *others = made.values()
    expected = stats.dunnett(*others, control=baseline, random_state=np.random.default_rng(1))  # pyright: ignore
    interval = expected.confidence_interval(0.95)
    level, spread = dunnett_level(made, "row 0"), pooled(list(made.values()))
    for i, other in enumerate(others):
        one = contrast(baseline, other, spread)
        assert one is not None
        assert one.interval(level) == pytest.approx((interval.low[i], interval.high[i]), rel=0, abs=1e-4)


def test_one_row_against_a_baseline_is_students_t() -> None:
    made = rows(0, 0.01, 0.01)
    assert dunnett_level(made, "row 0") == LEVEL
    a, b = made.values()
    one = contrast(a, b, pooled([a, b]))
    expected: Any = stats.ttest_ind(b, a)
    assert one is not None
    assert one.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert one.interval() == pytest.approx(tuple(expected.confidence_interval()), rel=1e-9)


def test_unlike_spreads_are_welchs_t() -> None:
    a, b = rows(1, 0.01, 0.05).values()
    one = contrast(a, b[:3], None)
    expected: Any = stats.ttest_ind(b[:3], a, equal_var=False)
    assert one is not None
    assert one.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert one.interval() == pytest.approx(tuple(expected.confidence_interval()), rel=1e-9)


def test_a_row_without_spread_is_compared_by_the_others_and_two_such_rows_are_not() -> None:
    one = contrast([0.0, 0.0, 0.0], [0.3, 0.31, 0.33], None)
    assert one is not None
    assert (one.se, one.df) == pytest.approx((stdev([0.3, 0.31, 0.33]) / math.sqrt(3), 2.0))
    assert contrast([0.0, 0.0], [0.3, 0.3], None) is None
    assert contrast([0.3], [0.3, 0.4], None) is None


def holm_by_hand(ps: list[float]) -> list[bool]:
    """Sorted p_(i) * (m - i + 1), the running maximum."""
    order = sorted(range(len(ps)), key=ps.__getitem__)
    adjusted, highest = {}, 0.0
    for i, place in enumerate(order):
        highest = max(highest, ps[place] * (len(ps) - i))
        adjusted[place] = highest
    return [adjusted[place] <= LEVEL for place in range(len(ps))]


@pytest.mark.parametrize("seed", range(40))
def test_intervals_exclude_zero_exactly_where_the_procedure_rejects(seed: int) -> None:
    draw = np.random.default_rng(seed)
    ps = (draw.uniform(0, 1, 7) ** draw.uniform(1, 6)).tolist()
    holm, many = holm_levels(ps), discovery_levels(ps)
    assert [p <= level for p, level in zip(ps, holm, strict=True)] == holm_by_hand(ps)
    chosen = stats.false_discovery_control(ps) <= LEVEL
    assert [p <= level for p, level in zip(ps, many, strict=True)] == chosen.tolist()
    assert max(holm) <= LEVEL


def test_a_single_comparison_is_not_corrected() -> None:
    assert holm_levels([0.03]) == discovery_levels([0.03]) == [LEVEL]
    assert holm_levels([]) == discovery_levels([]) == []


@pytest.mark.parametrize(("sd", "seeds", "smallest"), [(0.2, 3, 0.61), (0.2, 5, 0.40), (0.2, 10, 0.27)])
def test_what_so_many_seeds_find(sd: float, seeds: int, smallest: float) -> None:
    """n = 2 ((t_.975 + t_.8) s / delta)^2, and by the exact power of the t test within 2 %."""
    found, df = detectable(seeds, sd), 2 * seeds - 2
    assert found == pytest.approx(smallest, abs=0.005)
    assert seeds == pytest.approx(2 * ((stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df)) * sd / found) ** 2)
    shift = found / sd * math.sqrt(seeds / 2)
    assert stats.nct.sf(stats.t.ppf(0.975, df), df, shift) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("images", [0.0, 0.05])
@pytest.mark.parametrize("delta", [0.15, 0.3, 0.7, 2.0])
def test_the_plan_is_the_smallest_number_that_finds_it(delta: float, images: float) -> None:
    n = plan(delta, 0.2, images)
    assert n is not None
    assert detectable(n, 0.2, images) <= delta
    assert n == 2 or detectable(n - 1, 0.2, images) > delta


def test_where_no_number_of_seeds_helps() -> None:
    assert plan(0.3, 0.2, 0.2) is None  # 2.8 standard errors of the images are more than the difference
    assert plan(0.0, 0.2) is None
    assert detectable(MOST, 0.2) > 0
    with pytest.raises(ValueError, match="2 or more are needed"):
        detectable(1, 0.2)
