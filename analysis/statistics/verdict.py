"""Is a row better? Seeds and images together, in the words that people read: see docs/statistics.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.statistics.seeds import Interval

BETTER, WORSE, HERE, NOT_RESOLVED = "better", "worse", " on these images", "not resolved"


@dataclass(frozen=True)
class Row:
    """One metric of one row of the table: a number for each seed, and its resamples [seeds, B], if all have matches."""

    values: Sequence[float]
    resamples: np.ndarray | None = None


@dataclass(frozen=True)
class Difference:
    """A row minus its baseline, in the unit of the values.

    verdict: better | worse | better on these images | worse on these images | not resolved | no verdict (a row has one
    seed). needs: what would resolve it, or why there is no verdict; empty if resolved. method: the test of the seeds.
    """

    delta: float
    seeds_interval: Interval | None
    images_interval: Interval | None
    combined_interval: Interval | None
    method: str
    verdict: str
    needs: str

    @property
    def words(self) -> str:
        """For people: `better`, or `not resolved: about 7 seeds`."""
        return f"{self.verdict}: {self.needs}" if self.needs else self.verdict

    @property
    def is_resolved(self) -> bool:
        return self.verdict.startswith((BETTER, WORSE))


def against(rows: Mapping[str, Row], baseline: str) -> dict[str, Difference]:
    """Every other row minus the baseline, corrected for their number. rows: all of the study, by any name."""
    raise NotImplementedError


def planned(pairs: Iterable[tuple[str, str]], rows: Mapping[str, Row]) -> list[Difference]:
    """Contrasts (a, b) chosen beforehand -> b minus a for each, corrected by Holm. rows: all of the study."""
    raise NotImplementedError


def not_worse_than_best(rows: Mapping[str, Row]) -> set[str]:
    """The best row by its mean, and all that are not resolved from it: what a table sets in bold."""
    raise NotImplementedError


def by_category(a: Mapping[str, Row], b: Mapping[str, Row]) -> dict[str, Difference]:
    """AP of each category, b minus a; the share of false discoveries among those resolved is at most 5 %."""
    raise NotImplementedError


def plan(delta: float, sd: float, images_se: float = 0.0) -> int | None:
    """Seeds a row at which a difference of `delta` is resolved with 80 % power; None: no number of seeds does it."""
    raise NotImplementedError
