"""The intervals' coverage on fewer made-up studies than `python -m benchmarks.statistics` takes, always the same."""

from __future__ import annotations

import pytest

from benchmarks.statistics import SPREADS, coverage, false_verdicts

STUDIES = 200
CHANCE = 0.03  # two standard errors of a share of 0.95 over so many studies


@pytest.mark.parametrize("seeds", [2, 5])
@pytest.mark.parametrize("widest", SPREADS.values(), ids=SPREADS)
def test_intervals_hold_the_truth_and_false_verdicts_are_rare(widest: float, seeds: int) -> None:
    shares = coverage(STUDIES, widest, seeds)
    is_pooled = shares.pop("pooled")
    assert (is_pooled > 0.3) == (widest == 1 or seeds == 2)
    assert all(abs(share - 0.95) < 0.02 + CHANCE for share in shares.values()), shares
    assert all(share < 0.06 + CHANCE for share in false_verdicts(STUDIES, widest, seeds).values())
