"""Is a row better? Seeds and images together, in the words that people read: see docs/statistics.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from analysis.statistics.pairs import Pair, Row
from analysis.statistics.seeds import (
    LEVEL,
    Contrast,
    Interval,
    can_be_pooled,
    discovery_levels,
    dunnett_level,
    holm_levels,
    pooled,
)

BETTER, WORSE, HERE, NOT_RESOLVED = "better", "worse", " on these images", "not resolved"
Levels = Callable[[Sequence[float]], Sequence[float]]  # p values of all comparisons -> the level of each interval
Found = tuple[float, Interval]  # the level of an interval, and the interval


@dataclass(frozen=True)
class Difference:
    """A row minus its baseline, in the unit of the values.

    verdict: better | worse | better on these images | worse on these images | not resolved | one seed | no spread.
    needs: what would resolve it, or why there is no verdict; empty if resolved. method: the test of the seeds, and the
    correction. note: what a reader must know besides. images_interval: of this pair alone; the others are corrected.
    """

    delta: float
    seeds_interval: Interval | None
    images_interval: Interval | None
    combined_interval: Interval | None
    method: str
    verdict: str
    needs: str = ""
    note: str = ""

    @property
    def words(self) -> str:
        """For people: `better`, or `not resolved: about 7 seeds`."""
        return f"{self.verdict}: {self.needs}" if self.needs else self.verdict

    @property
    def is_resolved(self) -> bool:
        return self.verdict.startswith((BETTER, WORSE))


def against(rows: Mapping[str, Row], baseline: str) -> dict[str, Difference]:
    """Every other row minus the baseline, corrected for their number: by Dunnett, or by Welch with Holm.

    rows: all of the study, by any name; those without a value are left out.
    """
    values = {name: row.values for name, row in rows.items()}
    pairs = [(baseline, name) for name in rows if name != baseline and len(values[name])]
    if len(values[baseline]) == 0:
        return {}
    if not can_be_pooled(list(values.values())) or len(values[baseline]) < 2:
        return _by_name(planned(pairs, rows), pairs)
    level = dunnett_level(values, baseline)
    method = "Dunnett, pooled spread" if level < LEVEL else "t, pooled spread"
    return _by_name(_judged(_pairs(pairs, rows), method, lambda ps: [level] * len(ps)), pairs)


def planned(pairs: Sequence[tuple[str, str]], rows: Mapping[str, Row]) -> list[Difference]:
    """Contrasts (a, b) chosen beforehand -> b minus a for each, corrected by Holm. rows: all of the study."""
    test = "t, pooled spread" if can_be_pooled([row.values for row in rows.values()]) else "Welch"
    return _judged(_pairs(pairs, rows), f"{test}, Holm" if len(pairs) > 1 else test, holm_levels)


def not_resolved_from_best(rows: Mapping[str, Row]) -> set[str]:
    """The row with the highest mean, and all that are not resolved from it: what a table sets in bold."""
    with_values = {name: row for name, row in rows.items() if len(row.values)}
    if not with_values:
        return set()
    best = max(with_values, key=lambda name: fmean(with_values[name].values))
    found = against(with_values, best)
    return {best, *(name for name, difference in found.items() if not difference.is_resolved)}


def by_category(a: Mapping[str, Row], b: Mapping[str, Row]) -> dict[str, Difference]:
    """Each category, b minus a, by its own spread; of those resolved, at most 5 % are expected to be false.

    Categories without a value on one side are left out.
    """
    names = [name for name in a if name in b and len(a[name].values) and len(b[name].values)]
    pairs = [_alone(a[name], b[name]) for name in names]
    return dict(zip(names, _judged(pairs, "Benjamini-Hochberg", discovery_levels), strict=True))


def by_error(a: Mapping[str, Row], b: Mapping[str, Row]) -> dict[str, Difference]:
    """Each of TIDE's types of error, b minus a, corrected by Holm. Less is better. Known for seeds only."""
    pairs = [_alone(a[name], b[name]) for name in a]
    return dict(zip(a, _judged(pairs, "Holm", holm_levels, less_is_better=True), strict=True))


def _alone(a: Row, b: Row) -> Pair:
    """Two rows that have nothing to do with the spread of others."""
    both = [a.values, b.values]
    return Pair(a, b, pooled(both) if can_be_pooled(both) else None)


def _pairs(names: Sequence[tuple[str, str]], rows: Mapping[str, Row]) -> list[Pair]:
    study = [row.values for row in rows.values()]
    shared = pooled(study) if can_be_pooled(study) else None
    return [Pair(rows[a], rows[b], shared) for a, b in names]


def _by_name(found: Sequence[Difference], pairs: Sequence[tuple[str, str]]) -> dict[str, Difference]:
    return {name: difference for (_, name), difference in zip(pairs, found, strict=True)}


def _judged(pairs: Sequence[Pair], method: str, levels: Levels, *, less_is_better: bool = False) -> list[Difference]:
    """The words for each pair. The seeds and both together are corrected each for itself, in the same way."""
    by_seeds = _intervals([pair.seeds for pair in pairs], levels)
    by_both = _intervals([pair.combined for pair in pairs], levels)
    found = zip(pairs, by_seeds, by_both, strict=True)
    return [_judge(pair, method, seeds, both, less_is_better) for pair, seeds, both in found]


def _intervals(contrasts: Sequence[Contrast | None], levels: Levels) -> list[Found | None]:
    known = [one for one in contrasts if one is not None]
    chosen = iter(levels([one.p for one in known]) if known else [])
    return [None if one is None else (level := next(chosen), one.interval(level)) for one in contrasts]


def _judge(pair: Pair, method: str, seeds: Found | None, both: Found | None, less_is_better: bool) -> Difference:
    def difference(verdict: str, needs: str = "", note: str = "") -> Difference:
        intervals = (seeds and seeds[1], pair.images_interval, both and both[1])
        return Difference(pair.delta, *intervals, method if seeds else "", verdict, needs, note)

    if seeds is None:
        if pair.fewest < 2:
            return difference("one seed", "spread of training unknown")
        return difference("no spread", "all seeds gave the same number")
    note = "two seeds say little of the spread" if pair.fewest == 2 else ""
    word = BETTER if (pair.delta > 0) != less_is_better else WORSE
    if both is not None and both[1].excludes_zero:
        return difference(word, note=note)
    if seeds[1].excludes_zero:
        return difference(word + HERE, note=note)
    return difference(NOT_RESOLVED, pair.needs((both or seeds)[0]), note)
