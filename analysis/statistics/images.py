"""The paired bootstrap over the images of the validation split.

A resample draws as many images as there are, with replacement: weights w ~ Multinomial(N, 1/N), the same for all runs.
Method: M. Everingham et al., "The Pascal Visual Object Classes Challenge: A Retrospective", IJCV 2015.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from analysis.statistics.curves import Curves
from fovea_detr.errors import RunFolderError
from fovea_detr.evaluation.matches import UNREADABLE, Matches, check_result, read_matches
from fovea_detr.runs.folder import COCO_METRICS, MATCHES, Metric, write_atomic

RESAMPLES = 1000
SEED = 0
AT_ONCE = 50  # resamples: the memory does not depend on their number
VERSION = 1  # of the cached files


@dataclass(frozen=True)
class Resamples:
    """Of one run: B resamples. The same resample has the same images in every run of the same split."""

    values: dict[str, np.ndarray]  # [B] by metric; NaN where a resample has no object that counts
    by_category: dict[str, np.ndarray]  # [B] AP by category; NaN where a resample has no object of it
    split: str  # equal for runs that can be paired


def resamples_of(
    runs: Sequence[Path],
    metrics: Sequence[str],
    cache: Path,
    number: int = RESAMPLES,
    seed: int = SEED,
    progress: Callable[[Path], object] = lambda _: None,
) -> dict[Path, Resamples]:
    """The resamples of each run folder that has matches; the others are left out.

    cache: a folder, the study's; its files are named by the content of the matches. progress: called after each run.
    RunFolderError: matches that are damaged or not of the run's result.json.
    """
    chosen = {name: next(metric for metric in COCO_METRICS if metric.name == name) for name in metrics}
    found = {}
    for run in runs:
        if (run / MATCHES).exists():
            found[run] = _of_run(run, list(chosen.values()), cache, number, seed)
        progress(run)
    return found


def _of_run(run: Path, metrics: Sequence[Metric], cache: Path, number: int, seed: int) -> Resamples:
    settings = json.dumps([VERSION, number, seed, metrics])
    key = hashlib.sha256((run / MATCHES).read_bytes() + settings.encode()).hexdigest()[:32]
    path = cache / f"{key}.npz"
    with suppress(*UNREADABLE), np.load(path, allow_pickle=False) as file:
        check_result(run, float(file["ap"]), str(file["source"]))
        return _from_columns({key: file[key] for key in file.files})
    matches = read_matches(run)
    check_identity(run, matches)
    columns: dict[str, Any] = {
        **resample(matches, metrics, number, seed),
        "names": np.array([metric.name for metric in metrics]),
        "categories": matches.category_names,
        "split": np.array(split_of(matches)),
        "ap": np.array(matches.ap),
        "source": np.array(matches.source),
    }
    with suppress(OSError):  # a study of somebody else: it is computed each time
        write_atomic(path, lambda file: np.savez_compressed(file, **columns))
    return _from_columns(columns)


def _from_columns(columns: dict[str, np.ndarray]) -> Resamples:
    values = dict(zip(columns["names"].tolist(), columns["values"], strict=True))
    return Resamples(
        values, dict(zip(columns["categories"].tolist(), columns["aps"], strict=True)), str(columns["split"])
    )


def check_identity(run: Path, matches: Matches) -> None:
    """RunFolderError: the AP on all images as they are is not the evaluator's."""
    only = [metric for metric in COCO_METRICS if metric.name == "AP"]  # the sizes take three times as long
    ap = float(resample_once(matches, np.ones(len(matches.image_ids)), only)["AP"])
    if not abs(ap - matches.ap) <= 1e-9 and not (np.isnan(ap) and matches.ap == -1):
        raise RunFolderError(
            f"{run / MATCHES}: damaged: its matches give AP {ap!r}, the evaluator gave {matches.ap!r}; make it again "
            f"with python -m fovea_detr.evaluation matches {run}"
        )


def resample_once(matches: Matches, weights: np.ndarray, metrics: Sequence[Metric] = COCO_METRICS) -> dict[str, float]:
    """The metrics by name, where image i stands weights[i] times; NaN where COCO gives -1."""
    values, _ = _Run(matches, metrics).at(weights[:, None].astype(np.float64))
    return {metric.name: float(value[0]) for metric, value in zip(metrics, values, strict=True)}


def resample(matches: Matches, metrics: Sequence[Metric], number: int, seed: int) -> dict[str, np.ndarray]:
    """values: [metrics, number]; aps: [K, number], AP by category."""
    run = _Run(matches, metrics)
    parts = [run.at(weights) for weights in all_weights(len(matches.image_ids), number, seed)]
    values, aps = (np.concatenate(column, axis=1) for column in zip(*parts, strict=True))
    return {"values": values, "aps": aps}


def all_weights(images: int, number: int, seed: int) -> Iterator[np.ndarray]:
    """Weights [images, at most AT_ONCE] of `number` resamples in all: how often each image is drawn."""
    draw = np.random.default_rng([seed, images])
    for first in range(0, number, AT_ONCE):
        drawn = draw.integers(images, size=(min(AT_ONCE, number - first), images))
        counts = [np.bincount(row, minlength=images) for row in drawn]
        yield np.ascontiguousarray(np.stack(counts, axis=1), dtype=np.float64)


class _Run:
    """The curves of a run, made once for all resamples."""

    def __init__(self, matches: Matches, metrics: Sequence[Metric]) -> None:
        self.matches, self.metrics = matches, metrics
        self.areas = {area: Curves(matches, area) for area in {"all", *(metric.area for metric in metrics)}}

    def at(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """weights [N, B] -> the metrics [M, B], and AP by category [K, B]."""

        @cache
        def table(kind: str, area: str, detections: int) -> np.ndarray:
            curves = self.areas[area]
            return curves.precisions(weights) if kind == "precision" else curves.recalls(weights, detections)

        values = []
        for metric in self.metrics:
            found = table(metric.table, metric.area, metric.detections)
            values.append(_mean(_mean(found[metric.places(self.matches.ious.tolist())])))
        return np.stack(values), _mean(table("precision", "all", 100))


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the first axis, without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    count = known.sum(0)
    return np.where(count, np.where(known, values, 0.0).sum(0) / np.maximum(count, 1), np.nan)


def split_of(matches: Matches) -> str:
    """A fingerprint of the images, categories and objects: equal for runs that were evaluated on the same split."""
    digest = hashlib.sha256()
    columns = (matches.image_ids, matches.category_ids, matches.object_images, matches.object_categories)
    for column in (*columns, matches.objects):
        digest.update(np.ascontiguousarray(column, np.int64).tobytes())
    return digest.hexdigest()[:16]
