"""The intervals' coverage on fewer made-up studies than `python -m benchmarks.statistics` takes; always the same ones."""

from __future__ import annotations

import pytest

from benchmarks.statistics import SPREADS, coverage, false_verdicts

STUDIES = 200
ERROR = 0.035  # two standard errors of a share of 0.95 over so many studies, and the 2 % that are allowed


@pytest.mark.parametrize("spreads", SPREADS.values(), ids=SPREADS)
def test_intervals_hold_the_truth_and_false_verdicts_are_rare(spreads: tuple[float, ...]) -> None:
    shares = coverage(STUDIES, spreads, 5)
    is_dunnett = shares.pop("by Dunnett")
    assert (is_dunnett > 0.5) == (len(set(spreads)) == 1)
    assert all(abs(share - 0.95) < ERROR + 0.015 for share in shares.values()), shares
    assert all(share < 0.06 + ERROR for share in false_verdicts(STUDIES, spreads, 5).values())
