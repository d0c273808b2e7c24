"""Do the table's intervals keep their promise? Coverage on made-up studies with known truth, and the time they take.

    python -m benchmarks.statistics [--studies 2000] [--time]

A study has 4, 8 or 16 rows; a run's AP is its row's true AP, plus what the images add, plus what the seed adds. Each
study has 400 images of its own; on each, the rows differ by the truth, by the image (the same for all seeds of a row)
and by noise of each run. The seeds' spread is alike in all rows, or threefold in the last. Each study is judged as the
table does it, with 400 resamples of the images. --time: CPU seconds of 1000 resamples of a split like COCO's val2017
(5000 images, 300 detections each; rectangular masks; 14 panoptic segments an image).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from analysis.statistics.images import RESAMPLES, SEED, all_weights, resample
from analysis.statistics.pairs import Row
from analysis.statistics.seeds import Interval
from analysis.statistics.verdict import BETTER, WORSE, Difference, against, planned
from benchmarks.evaluation import Case, random_case, random_xywh
from fovea_detr.data.panoptic import PanopticFiles
from fovea_detr.evaluation.coco import GroundTruth, metrics_of
from fovea_detr.evaluation.masks import coco_mask
from fovea_detr.evaluation.matches import MATCHES, Matches, Segments, write_matches
from fovea_detr.evaluation.matching import matches_of
from fovea_detr.evaluation.quality import PanopticMap, PanopticTruth
from fovea_detr.runs.folder import COCO_METRICS, PANOPTIC_METRICS, RunFolder

IMAGES, DRAWS = 400, 400
OF_IMAGE, OF_RUN = 0.10, 0.05  # sds of an image's score: by row and image; by run and image. Over 400: 0.005, 0.0025
SPREAD, SPREADS = 0.005, {"alike": 1, "threefold": 3}  # over seeds; times this in the last row
TRUTH = (0.30, 0.30, 0.32, 0.33)  # AP of the rows, repeated; the first is the baseline
SIZES = ((4, 3), (4, 5), (8, 2), (8, 3), (16, 2), (16, 3))  # rows and seeds


@dataclass(frozen=True)
class Study:
    """rows: as the table has them. on_images: the true AP of each row on the images of this study."""

    rows: dict[str, Row]
    truth: dict[str, float]
    on_images: dict[str, float]


def made_study(draw: np.random.Generator, truth: Sequence[float], widest: float, seeds: int) -> Study:
    weights = all_draws()
    names = list(map(str, range(len(truth))))
    rows, on_images = {}, {}
    for name, mean in zip(names, truth, strict=True):
        spread = SPREAD * (widest if name == names[-1] else 1)
        of_images = mean + draw.normal(0, OF_IMAGE, IMAGES)
        scores = of_images + draw.normal(0, spread, (seeds, 1)) + draw.normal(0, OF_RUN, (seeds, IMAGES))
        rows[name] = Row(scores.mean(1).tolist(), scores @ weights)
        on_images[name] = float(of_images.mean())
    return Study(rows, dict(zip(names, truth, strict=True)), on_images)


@cache
def all_draws() -> np.ndarray:
    """[images, draws] the share of each image in each resample, as in the table: the same for all runs."""
    return np.concatenate(list(all_weights(IMAGES, DRAWS, SEED)), axis=1) / IMAGES


def studies(number: int, truth: Sequence[float], widest: float, seeds: int) -> Iterator[Study]:
    """The i-th study is the same for any number of them."""
    for i in range(number):
        yield made_study(np.random.default_rng([i, seeds]), truth, widest, seeds)


def contains(interval: Interval | None, value: float) -> bool:
    assert interval is not None
    return interval.low <= value <= interval.high


def missed(found: Mapping[str, Difference], study: Study) -> tuple[bool, bool]:
    """Whether any interval of the seeds, or of both, misses the true difference: on these images, or on all."""
    base = next(iter(study.rows))
    by_seeds = [
        contains(one.seeds_interval, study.on_images[name] - study.on_images[base]) for name, one in found.items()
    ]
    by_both = [contains(one.combined_interval, study.truth[name] - study.truth[base]) for name, one in found.items()]
    return not all(by_seeds), not all(by_both)


def coverage(number: int, widest: float, seeds: int, rows: int = 4) -> dict[str, float]:
    """Shares of studies whose intervals hold the truth: of all rows at once, and of one planned contrast alone.

    pooled: the share of comparisons by Dunnett.
    """
    all_rows, one_pair, dunnett = [], [], []
    for study in studies(number, [TRUTH[i % len(TRUTH)] for i in range(rows)], widest, seeds):
        first, *_, last = study.rows
        found = against(study.rows, first)
        dunnett += [one.method.startswith("Dunnett") for one in found.values()]
        all_rows.append(missed(found, study))
        (pair,) = planned([(first, last)], study.rows)
        one_pair.append(missed({last: pair}, study))
    several, single = 1 - np.mean(all_rows, axis=0), 1 - np.mean(one_pair, axis=0)
    columns = ("all rows: seeds", "all rows: both", "one pair: seeds", "one pair: both", "pooled")
    return dict(zip(columns, (*several.tolist(), *single.tolist(), float(np.mean(dunnett))), strict=True))


def false_verdicts(number: int, widest: float, seeds: int, rows: int = 4) -> dict[str, float]:
    """Shares of studies without any true difference in which some row gets a verdict all the same."""
    here, anywhere = 0, 0
    for study in studies(number, TRUTH[:1] * rows, widest, seeds):
        centred = {  # no difference on these images, either
            name: Row([value - study.on_images[name] + TRUTH[0] for value in row.values])
            for name, row in study.rows.items()
        }
        first = next(iter(study.rows))
        here += any(one.is_resolved for one in against(centred, first).values())
        anywhere += any(one.verdict in (BETTER, WORSE) for one in against(study.rows, first).values())
    return {"false: these images": here / number, "false: in general": anywhere / number}


def times() -> Iterator[str]:
    """CPU seconds for one run of a split like val2017: boxes, masks, panoptic segments."""
    for kind in ("bbox", "segm"):
        case = random_case(5000, 300) if kind == "bbox" else masked_case(5000, 300)
        truth = GroundTruth(case.content)
        begin = time.process_time()
        ap = metrics_of(truth, case.table, kind)["AP"]
        yield f"{kind}: COCO's metrics: {time.process_time() - begin:.1f}"
        begin = time.process_time()
        matches = matches_of(truth, case.table, ap, kind=kind)
        yield f"{kind}: the matches of a final evaluation, with TIDE's errors: {time.process_time() - begin:.1f}"
        yield f"{kind}: their file: {megabytes(matches):.1f} MB"
        few = [metric for metric in COCO_METRICS if metric.name in ("AP", "AP50", "AP75")]
        sizes = [metric for metric in COCO_METRICS if metric.table == "precision"]
        for title, metrics in (("AP, AP50, AP75", few), ("these, AP90 and three sizes", sizes)):
            begin = time.process_time()
            resample(matches, metrics, RESAMPLES, SEED)
            yield f"{kind}: {RESAMPLES} resamples, {title}: {time.process_time() - begin:.1f}"
    yield from panoptic_times()


def panoptic_times() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        truth, maps = panoptic_case(Path(folder), 5000)
        begin = time.process_time()
        pq = truth.metrics(maps)["PQ"]
        yield f"panoptic: the metrics: {time.process_time() - begin:.1f}"
        begin = time.process_time()
        segments = truth.by_image(maps, pq)
        yield f"panoptic: the matches of a final evaluation: {time.process_time() - begin:.1f}"
    yield f"panoptic: their file: {megabytes(segments):.1f} MB"
    begin = time.process_time()
    resample(segments, PANOPTIC_METRICS, RESAMPLES, SEED)
    yield f"panoptic: {RESAMPLES} resamples, all nine: {time.process_time() - begin:.1f}"


def megabytes(matches: Matches | Segments) -> float:
    with tempfile.TemporaryDirectory() as folder:
        write_matches(RunFolder(folder), matches)
        return (Path(folder) / MATCHES).stat().st_size / 1e6


def masked_case(images: int, per_image: int) -> Case:
    """Every box as a mask."""
    case = random_case(images, per_image)
    rles = rectangles(np.array([one["bbox"] for one in case.content["annotations"]]))
    annotations = [{**one, "segmentation": rle} for one, rle in zip(case.content["annotations"], rles, strict=True)]
    masks = rectangles(case.table.rows[:, :4].numpy())
    table = replace(case.table, masks=np.array(masks, object))
    return replace(case, content={**case.content, "annotations": annotations}, table=table)


def rectangles(xywh: np.ndarray) -> list[dict[str, Any]]:
    return coco_mask.frPyObjects(np.ascontiguousarray(xywh), 480, 640)


def panoptic_case(folder: Path, images: int) -> tuple[PanopticTruth, list[PanopticMap]]:
    """14 rectangles an image of 133 categories, found shifted by a few pixels; a tenth as another category."""
    rng = np.random.default_rng(0)
    annotations, maps = [], []
    for image in range(images):
        ids, labels = np.zeros((480, 640), np.uint32), rng.integers(1, 134, 15)
        for k, (x, y, w, h) in enumerate(random_xywh(14, rng).astype(int).tolist(), 1):
            ids[y : y + h + 1, x : x + w + 1] = k
        found = np.roll(ids, rng.integers(-9, 9, 2), (0, 1))
        others = np.where(rng.random(15) < 0.1, rng.integers(1, 134, 15), labels)
        true, listed = (
            [segment(k, own, map_) for k in np.unique(map_) if k] for own, map_ in ((labels, ids), (others, found))
        )
        one = PanopticMap.of(image, ids, true)
        (folder / f"{image}.png").write_bytes(one.png)
        annotations.append({"image_id": image, "file_name": f"{image}.png", "segments_info": true})
        maps.append(PanopticMap.of(image, found, listed))
    categories = [{"id": k, "name": str(k), "isthing": int(k <= 80)} for k in range(1, 134)]
    sized = [{"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 640} for i in range(images)]
    content = {"images": sized, "categories": categories, "annotations": annotations}
    (folder / "truth.json").write_text(json.dumps(content))
    return PanopticTruth(PanopticFiles(folder / "truth.json", folder), range(images)), maps


def segment(k: int, labels: np.ndarray, ids: np.ndarray) -> dict[str, int]:
    return {"id": int(k), "category_id": int(labels[k]), "iscrowd": 0, "area": int((ids == k).sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--time", action="store_true", help="measure CPU seconds instead")
    options = parser.parse_args()
    if options.time:
        for line in times():
            print(line, flush=True)
        return
    for rows, seeds in SIZES:
        for name, widest in SPREADS.items():
            shares = coverage(options.studies, widest, seeds, rows)
            shares |= false_verdicts(options.studies, widest, seeds, rows)
            cells = " | ".join(f"{100 * share:.1f}" for share in shares.values())
            print(f"| {rows} rows, {seeds} seeds, {name} | {cells} |", flush=True)
    print(f"{time.process_time():.0f} CPU seconds")


if __name__ == "__main__":
    main()
