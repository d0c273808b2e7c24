"""The intervals' coverage on fewer made-up studies than `python -m benchmarks.statistics` takes, always the same."""

from __future__ import annotations

import pytest

from benchmarks.statistics import SPREADS, coverage, false_verdicts

STUDIES = 200
CHANCE = 0.03  # two standard errors of a share of 0.95 over so many studies


@pytest.mark.parametrize("spreads", SPREADS.values(), ids=SPREADS)
def test_intervals_hold_the_truth_and_false_verdicts_are_rare(spreads: tuple[float, ...]) -> None:
    shares = coverage(STUDIES, spreads, 5)
    is_dunnett = shares.pop("by Dunnett")
    assert (is_dunnett > 0.3) == (len(set(spreads)) == 1)
    assert all(abs(share - 0.95) < 0.02 + CHANCE for share in shares.values()), shares
    assert all(share < 0.06 + CHANCE for share in false_verdicts(STUDIES, spreads, 5).values())
