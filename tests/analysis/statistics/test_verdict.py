"""The words, each from a case that must give it, and the intervals by hand."""

from __future__ import annotations

import math
from statistics import fmean, stdev, variance
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.pairs import Row
from analysis.statistics.verdict import against, by_category, by_error, not_resolved_from_best, planned

BASE = [0.400, 0.402, 0.398, 0.401, 0.399]


def row(shift: float, images_sd: float | None = None, seeds: int = 5, seed: int = 0, split: str = "val") -> Row:
    """The baseline's seeds shifted; each seed's resamples scatter in the same way, about its value."""
    values = [value + shift for value in BASE[:seeds]]
    if images_sd is None:
        return Row(values)
    noise = np.random.default_rng(seed).normal(0, images_sd, 2000)
    return Row(values, np.array(values)[:, None] + (noise - noise.mean()), split)


def told(shift: float, images_sd: float | None, seeds: int = 5) -> str:
    base, other = row(0, images_sd and 1e-9, seeds), row(shift, images_sd, seeds, seed=1)
    return against({"base": base, "new": other}, "base")["new"].words


@pytest.mark.parametrize(
    ("shift", "images_sd", "words"),
    [
        (0.01, 0.001, "better"),
        (-0.01, 0.001, "worse"),
        (0.01, 0.01, "better on these images"),
        (-0.01, 0.01, "worse on these images"),
        (0.01, None, "better on these images"),
        (0.001, 0.01, "not resolved: no number of seeds: more images"),
        (0.001, 1e-6, "not resolved: about 41 seeds"),
        (0.001, None, "not resolved: about 41 seeds"),
        (0.0, None, "not resolved: more than 10000 seeds"),
    ],
)
def test_the_words(shift: float, images_sd: float | None, words: str) -> None:
    assert told(shift, images_sd) == words


def test_the_number_of_seeds_is_by_the_formula() -> None:
    n, s = 41, stdev(BASE)
    for seeds, is_enough in ((n, True), (n - 1, False)):
        df = 2 * seeds - 2
        needed = 2 * ((stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df)) * s / 0.001) ** 2
        assert (needed <= seeds) == is_enough


def test_one_seed_never_gets_a_verdict() -> None:
    rows = {"base": row(0, 1e-9), "one": row(0.2, 1e-6, seeds=1), "new": row(0.01, 1e-6)}
    found = against(rows, "base")
    assert found["one"].words == "one seed: spread of training unknown"
    assert not found["one"].is_resolved
    assert found["one"].seeds_interval is found["one"].combined_interval is None
    assert found["one"].images_interval is not None
    assert found["new"].words == "better"
    by_one = against(rows, "one")
    assert {one.words for one in by_one.values()} == {"one seed: spread of training unknown"}
    assert against({"a": Row([]), "b": row(0)}, "a") == {}
    assert against({"a": row(0), "b": Row([])}, "a") == {}


def test_equal_numbers_of_all_seeds_are_no_spread() -> None:
    found = against({"base": Row([0.4, 0.4]), "new": Row([0.5, 0.5])}, "base")["new"]
    assert found.words == "no spread: all seeds gave the same number"
    assert not found.is_resolved


def test_two_seeds_are_told() -> None:
    found = against({"base": row(0, seeds=2), "new": row(0.5, seeds=2)}, "base")["new"]
    assert found.note == "two seeds say little of the spread"


def test_the_intervals_by_hand() -> None:
    draw = np.random.default_rng(1)
    base, new = (Row(draw.normal(mean, 0.004, 5).tolist(), draw.normal(mean, 0.003, (5, 1000))) for mean in (0.4, 0.41))
    found = against({"base": base, "new": new}, "base")["new"]
    assert base.resamples is not None
    assert new.resamples is not None
    delta, s2 = fmean(new.values) - fmean(base.values), (variance(base.values) + variance(new.values)) / 2
    images = new.resamples.mean(0) - base.resamples.mean(0)
    parts = s2 * (1 / 5 + 1 / 5), float(images.var(ddof=1))
    df = sum(parts) ** 2 / (parts[0] ** 2 / 8)
    half = stats.t.ppf(0.975, df) * math.sqrt(sum(parts))
    assert found.delta == pytest.approx(delta, rel=1e-12)
    assert found.combined_interval == pytest.approx((delta - half, delta + half), rel=1e-9)
    assert found.images_interval == pytest.approx(np.percentile(images, [2.5, 97.5]).tolist(), rel=1e-9)
    expected = stats.ttest_ind(new.values, base.values).confidence_interval()
    assert found.seeds_interval == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.method == "t, pooled spread"


def test_both_together_are_never_narrower_than_the_seeds_alone() -> None:
    """Two close seeds a row: Satterthwaite's interval with the images would be narrower, and exclude 0."""
    close, noise = [0.4000, 0.4002], np.random.default_rng(0).normal(0, 1e-4, 2000)
    rows = {
        name: Row([value + shift for value in close], np.array(close)[:, None] + shift + scale * noise)
        for name, shift, scale in (("base", 0, 0), ("new", 0.0006, 1))
    }
    found = against(rows, "base")["new"]
    assert found.seeds_interval is not None
    assert not found.seeds_interval.excludes_zero
    assert found.combined_interval == found.seeds_interval
    assert not found.is_resolved


def test_many_alike_rows_are_judged_by_dunnett() -> None:
    rows = {"base": row(0), **{f"new {i}": row(0.001 * i) for i in range(4)}}
    found = against(rows, "base")
    assert {one.method for one in found.values()} == {"Dunnett, pooled spread"}
    test = stats.dunnett(*[one.values for name, one in rows.items() if name != "base"], control=BASE)
    interval = test.confidence_interval()
    for i, one in enumerate(found.values()):
        assert one.seeds_interval == pytest.approx((interval.low[i], interval.high[i]), abs=2e-5)


@pytest.mark.parametrize("base", [BASE, [0.0, 0.001, 0.002, 0.0, 0.0]])
def test_unlike_rows_and_rows_at_the_floor_are_judged_by_welch_with_holm(base: list[float]) -> None:
    wide = [0.3, 0.34, 0.45, 0.4, 0.38]
    rows = {"base": Row(base), "wide": Row(wide), "like": Row([value + 0.002 for value in BASE])}
    found = against(rows, "base")
    welch: Any = stats.ttest_ind
    ps = {name: welch(rows[name].values, base, equal_var=False).pvalue for name in ("wide", "like")}
    first, second = sorted(ps, key=ps.__getitem__)
    rejected = {first: ps[first] <= 0.025, second: ps[first] <= 0.025 and ps[second] <= 0.05}
    for name, one in found.items():
        assert one.method == "Welch, Holm"
        assert one.is_resolved == rejected[name]


def test_a_wide_row_is_judged_by_its_own_spread_and_the_others_by_the_pool() -> None:
    middle = fmean(BASE)
    wide = Row([middle + 1.6 * (value - middle) for value in BASE])
    rows = {"base": row(0), "wide": wide, **{f"like {i}": row(0.001 * i) for i in range(4)}}
    found = against(rows, "base")
    assert found.pop("wide").method == "Welch, Holm"
    assert {one.method for one in found.values()} == {"Dunnett, pooled spread"}
    (alone,) = planned([("base", "wide")], rows)
    welch: Any = stats.ttest_ind(wide.values, BASE, equal_var=False)
    assert alone.method == "Welch"
    assert alone.seeds_interval == pytest.approx(tuple(welch.confidence_interval()), rel=1e-9)


def test_planned_contrasts_are_corrected_by_holm_with_the_spread_of_the_study() -> None:
    rows = {"a": row(0), "b": row(0.0023), "c": row(0.5), "d": row(0.9)}
    (alone,) = planned([("a", "b")], rows)
    both = planned([("a", "b"), ("c", "d")], rows)
    assert alone.method == "t, pooled spread"
    assert both[0].method == "t, pooled spread, Holm"
    half = stats.t.ppf(0.975, 16) * stdev(BASE) * math.sqrt(2 / 5)
    assert alone.seeds_interval == pytest.approx((0.0023 - half, 0.0023 + half), rel=1e-9)
    assert both[0].seeds_interval == pytest.approx(alone.seeds_interval)  # Holm's last step is not corrected


def test_rows_of_different_images_have_no_interval_of_images() -> None:
    found = against({"base": row(0, 1e-6), "new": row(0.01, 1e-6, split="other")}, "base")["new"]
    assert found.images_interval is found.combined_interval is None
    assert found.words == "better on these images"


def test_what_is_not_resolved_from_the_best_is_not_worse() -> None:
    rows = {"best": row(0.01), "near": row(0.0095), "far": row(0), "none": Row([])}
    assert not_resolved_from_best(rows) == {"best", "near"}
    assert not_resolved_from_best({"none": Row([])}) == set()
    assert not_resolved_from_best({"one": Row([0.5]), "far": row(0)}) == {"one", "far"}


def test_of_many_categories_without_a_difference_few_are_resolved() -> None:
    draw = np.random.default_rng(0)
    names = [f"category {i}" for i in range(80)]
    a = {name: Row(draw.normal(0.4, 0.01, 5).tolist()) for name in names}
    b = {name: Row(draw.normal(0.4 + 0.1 * (i < 10), 0.01, 5).tolist()) for i, name in enumerate(names)}
    found = by_category(a, {**b, "another": Row([0.1, 0.2])})
    assert list(found) == names
    resolved = [name for name, one in found.items() if one.is_resolved]
    assert resolved[:10] == names[:10]
    assert len(resolved) <= 12


def test_fewer_errors_are_better() -> None:
    a, b = {"Loc": row(0), "Bkg": row(0)}, {"Loc": row(-0.01), "Bkg": row(0.01)}
    found = by_error(a, b)
    assert {name: one.verdict for name, one in found.items()} == {
        "Loc": "better on these images",
        "Bkg": "worse on these images",
    }
