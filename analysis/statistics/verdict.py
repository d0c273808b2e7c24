"""Is a row better? Seeds and images together, in the words that people read: see docs/statistics.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from analysis.statistics.pairs import Pair, Row
from analysis.statistics.seeds import (
    LEVEL,
    Contrast,
    Interval,
    discovery_levels,
    dunnett_level,
    fit_the_pool,
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
    if len(values[baseline]) == 0:
        return {}
    names = [name for name in rows if name != baseline and len(values[name])]
    pairs = dict(zip(names, _pairs([(baseline, name) for name in names], rows), strict=True))
    alike = {name: pair for name, pair in pairs.items() if pair.shared is not None}
    unlike = {name: pair for name, pair in pairs.items() if pair.shared is None}
    level = dunnett_level(values, baseline) if alike else LEVEL
    found = _by_name(alike, lambda ps: [level] * len(ps), test="Dunnett" if level < LEVEL else "t")
    found |= _by_name(unlike, lambda ps: holm_levels(ps, len(alike)), "Holm" if len(pairs) > 1 else "")
    return {name: found[name] for name in names}


def planned(pairs: Sequence[tuple[str, str]], rows: Mapping[str, Row]) -> list[Difference]:
    """Contrasts (a, b) chosen beforehand -> b minus a for each, corrected by Holm. rows: all of the study."""
    return _judged(_pairs(pairs, rows), holm_levels, "Holm" if len(pairs) > 1 else "")


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
    return _by_name({name: _alone(a[name], b[name]) for name in names}, discovery_levels, "Benjamini-Hochberg")


def by_error(a: Mapping[str, Row], b: Mapping[str, Row]) -> dict[str, Difference]:
    """Each of TIDE's types of error, b minus a, corrected by Holm. Less is better. Known for seeds only."""
    return _by_name({name: _alone(a[name], b[name]) for name in a}, holm_levels, "Holm", less_is_better=True)


def _alone(a: Row, b: Row) -> Pair:
    """Two rows that have nothing to do with the spread of others."""
    return _pairs([("a", "b")], {"a": a, "b": b})[0]


def _pairs(names: Sequence[tuple[str, str]], rows: Mapping[str, Row]) -> list[Pair]:
    """rows: all of the study. The spread is shared by two rows that both fit the pool."""
    values = [row.values for row in rows.values()]
    fitting = {name for name, fits in zip(rows, fit_the_pool(values), strict=True) if fits}
    spread = pooled(values)
    return [Pair(rows[a], rows[b], spread if {a, b} <= fitting else None) for a, b in names]


def _by_name(pairs: Mapping[str, Pair], levels: Levels, correction: str = "", **how: Any) -> dict[str, Difference]:
    return dict(zip(pairs, _judged(list(pairs.values()), levels, correction, **how), strict=True))


def _judged(
    pairs: Sequence[Pair], levels: Levels, correction: str = "", *, test: str = "t", less_is_better: bool = False
) -> list[Difference]:
    """The words for each pair. The seeds and both together are corrected each for itself, in the same way."""
    by_seeds = _intervals([pair.seeds for pair in pairs], levels)
    by_both = _intervals([pair.combined for pair in pairs], levels)
    found = []
    for pair, seeds, both in zip(pairs, by_seeds, by_both, strict=True):
        parts = ("Welch" if pair.shared is None else f"{test}, pooled spread", correction)
        both = both and seeds and _at_least(seeds, both)
        found.append(_judge(pair, ", ".join(filter(None, parts)), seeds, both, less_is_better))
    return found


def _at_least(seeds: Found, both: Found) -> Found:
    """Both together, not narrower than the seeds alone: two or three seeds that are alike by chance have a small
    variance, and beside that of the images its degrees of freedom hardly count. Without it, 91 to 93 % coverage."""
    (level, wide), (_, least) = both, seeds
    return level, Interval(min(wide.low, least.low), max(wide.high, least.high))


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
