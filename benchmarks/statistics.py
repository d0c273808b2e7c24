"""Do the intervals of the table keep their promise? Coverage on made-up studies with known truth, and the time it takes.

    python -m benchmarks.statistics [--studies 2000] [--time]

A study has four rows; a run's AP is its row's true AP, plus what the images add, plus what the seed adds. The images: 400
are drawn for each study; on each, the rows differ by the truth, by the image (the same for all seeds of a row) and by
noise of each run. Seeds: five a row, of a spread that is alike or differs threefold between rows. Each study is judged as
the table does it, with 400 resamples of the images. --time: 1000 resamples of a split like COCO's val2017 (5000 images,
300 detections each), for AP, AP50, AP75 and for all metrics. One thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from analysis.statistics.images import SEED, all_weights
from analysis.statistics.pairs import Row
from analysis.statistics.seeds import Interval
from analysis.statistics.verdict import Difference, against, planned

IMAGES, DRAWS, SEEDS = 400, 400, 5
OF_IMAGE, OF_RUN = 0.10, 0.05  # sds of an image's score: by row and image; by run and image. Over 400: 0.005, 0.0025
SPREADS = {"alike": (0.005,) * 4, "threefold": (0.005, 0.005, 0.005, 0.015), "twofold": (0.005, 0.005, 0.005, 0.01)}
TRUTH = (0.30, 0.30, 0.32, 0.33)  # AP of the rows; the first is the baseline
NAMES = ("a", "b", "c", "d")


@dataclass(frozen=True)
class Study:
    """rows: as the table has them. on_images: the true AP of each row on the images of this study."""

    rows: dict[str, Row]
    truth: dict[str, float]
    on_images: dict[str, float]


def made_study(draw: np.random.Generator, truth: Sequence[float], spreads: Sequence[float], seeds: int) -> Study:
    weights = all_draws()
    rows, on_images = {}, {}
    for name, mean, spread in zip(NAMES, truth, spreads, strict=False):
        of_images = mean + draw.normal(0, OF_IMAGE, IMAGES)
        scores = of_images + draw.normal(0, spread, (seeds, 1)) + draw.normal(0, OF_RUN, (seeds, IMAGES))
        rows[name] = Row(scores.mean(1).tolist(), scores @ weights)
        on_images[name] = float(of_images.mean())
    return Study(rows, dict(zip(NAMES, truth, strict=False)), on_images)


@cache
def all_draws() -> np.ndarray:
    """[images, draws] the share of each image in each resample, as in the table: the same for all runs."""
    return np.concatenate(list(all_weights(IMAGES, DRAWS, SEED)), axis=1) / IMAGES


def studies(number: int, truth: Sequence[float], spreads: Sequence[float], seeds: int = SEEDS) -> Iterator[Study]:
    """The i-th study is the same for any number of them."""
    for i in range(number):
        yield made_study(np.random.default_rng([i, seeds]), truth, spreads, seeds)


def contains(interval: Interval | None, value: float) -> bool:
    assert interval is not None
    return interval.low <= value <= interval.high


def missed(found: Mapping[str, Difference], study: Study) -> tuple[bool, bool]:
    """Whether any interval of the seeds, or of both, misses the true difference: on these images, or on all."""
    base = NAMES[0]
    by_seeds = [
        contains(one.seeds_interval, study.on_images[name] - study.on_images[base]) for name, one in found.items()
    ]
    by_both = [contains(one.combined_interval, study.truth[name] - study.truth[base]) for name, one in found.items()]
    return not all(by_seeds), not all(by_both)


def coverage(number: int, spreads: Sequence[float], seeds: int = SEEDS) -> dict[str, float]:
    """Shares of studies: all rows against the baseline; one planned contrast, of the baseline and the last row."""
    all_rows, one_pair, images, dunnett = [], [], [], 0
    for study in studies(number, TRUTH, spreads, seeds):
        found = against(study.rows, NAMES[0])
        dunnett += found[NAMES[1]].method.startswith("Dunnett")
        all_rows.append(missed(found, study))
        (pair,) = planned([(NAMES[0], NAMES[-1])], study.rows)
        one_pair.append(missed({NAMES[-1]: pair}, study))
        mean = {name: float(np.mean(study.rows[name].values)) for name in NAMES}
        images.append(contains(pair.images_interval, mean[NAMES[-1]] - mean[NAMES[0]]))
    several, single = 1 - np.mean(all_rows, axis=0), 1 - np.mean(one_pair, axis=0)
    return {
        "all rows, seeds": float(several[0]),
        "all rows, both": float(several[1]),
        "one pair, seeds": float(single[0]),
        "one pair, both": float(single[1]),
        "judged by Dunnett": dunnett / number,
    }


def false_verdicts(number: int, spreads: Sequence[float], seeds: int = SEEDS) -> dict[str, float]:
    """Shares of studies without any true difference in which some row is called better or worse."""
    here, anywhere = 0, 0
    for study in studies(number, (TRUTH[0],) * 4, spreads, seeds):
        centred = {  # no difference on these images, either
            name: Row([value - study.on_images[name] + TRUTH[0] for value in row.values])
            for name, row in study.rows.items()
        }
        here += any(one.is_resolved for one in against(centred, NAMES[0]).values())
        anywhere += any(one.verdict in ("better", "worse") for one in against(study.rows, NAMES[0]).values())
    return {"on these images": here / number, "in general": anywhere / number}
