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
from scipy import sparse

from analysis.statistics.curves import Curves
from fovea_detr.errors import RunFolderError
from fovea_detr.evaluation.matches import AGAIN, OF_BOXES, UNREADABLE, Matches, MatchFile, Segments, check_result
from fovea_detr.runs.folder import COCO_METRICS, PANOPTIC_METRICS, Metric, Quality, write_atomic

RESAMPLES = 1000
SEED = 0
AT_ONCE = 50  # resamples: the memory does not depend on their number
VERSION = 1  # of the cached files


@dataclass(frozen=True)
class Resamples:
    """Of one run: B resamples. The same resample has the same images in every run of the same split."""

    values: dict[str, np.ndarray]  # [B] by metric; NaN where a resample has no object that counts
    by_category: dict[str, np.ndarray]  # [B] AP, segm_AP or PQ by category; NaN where a resample has no object of it
    split: str  # equal for runs that can be paired


def resamples_of(
    runs: Sequence[Path],
    metrics: Sequence[str],
    cache: Path,
    number: int = RESAMPLES,
    seed: int = SEED,
    progress: Callable[[Path], object] = lambda _: None,
    file: MatchFile = OF_BOXES,
) -> dict[Path, Resamples]:
    """The resamples of each run folder that has matches; the others are left out.

    cache: a folder, the study's; its files are named by the content of the matches. progress: called after each run.
    file: the matches to resample, which have these metrics. RunFolderError: they are damaged or not of the run's
    result.json.
    """
    by_name: dict[str, Metric | Quality] = {metric.name: metric for metric in file.metrics}
    found = {}
    for run in runs:
        if (run / file.name()).exists():
            found[run] = _of_run(run, file, [by_name[name] for name in metrics], cache, number, seed)
        progress(run)
    return found


def _of_run(
    run: Path, file: MatchFile, metrics: Sequence[Metric | Quality], cache: Path, number: int, seed: int
) -> Resamples:
    settings = json.dumps([VERSION, number, seed, metrics])
    key = hashlib.sha256((run / file.name()).read_bytes() + settings.encode()).hexdigest()[:32]
    path = cache / f"{key}.npz"
    with suppress(*UNREADABLE), np.load(path, allow_pickle=False) as cached:
        check_result(run, float(cached["ap"]), str(cached["source"]), file)
        return _from_columns({key: cached[key] for key in cached.files})
    matches = file.read(run)
    check_identity(run, matches, file)
    columns: dict[str, Any] = {
        **resample(matches, metrics, number, seed),
        "names": np.array([metric.name for metric in metrics]),
        "categories": matches.category_names,
        "split": np.array(split_of(matches)),
        "ap": np.array(matches.score),
        "source": np.array(matches.source),
    }
    with suppress(OSError):  # a study of somebody else: it is computed each time
        write_atomic(path, lambda out: np.savez_compressed(out, **columns))
    return _from_columns(columns)


def _from_columns(columns: dict[str, np.ndarray]) -> Resamples:
    values = dict(zip(columns["names"].tolist(), columns["values"], strict=True))
    return Resamples(
        values, dict(zip(columns["categories"].tolist(), columns["aps"], strict=True)), str(columns["split"])
    )


def check_identity(run: Path, matches: Matches | Segments, file: MatchFile) -> None:
    """RunFolderError: the score on all images as they are is not the evaluator's."""
    ones = np.ones(len(matches.image_ids))
    score = resample_once(matches, ones, file.metrics[:1])[file.score]  # the sizes take three times as long
    if not abs(score - matches.score) <= 1e-9 and not (np.isnan(score) and matches.score == -1):
        raise RunFolderError(
            f"{run / file.name()}: damaged: its matches give {file.score} {score!r}, the evaluator gave "
            f"{matches.score!r}; {AGAIN} {run}"
        )


def resample_once(
    matches: Matches | Segments, weights: np.ndarray, metrics: Sequence[Metric | Quality] | None = None
) -> dict[str, float]:
    """The metrics by name, where image i stands weights[i] times; NaN where COCO gives -1. None: all that there are."""
    if metrics is None:
        metrics = COCO_METRICS if isinstance(matches, Matches) else PANOPTIC_METRICS
    values, _ = _run_of(matches, metrics).at(weights[:, None].astype(np.float64))
    return {metric.name: float(value[0]) for metric, value in zip(metrics, values, strict=True)}


def resample(
    matches: Matches | Segments, metrics: Sequence[Metric | Quality], number: int, seed: int
) -> dict[str, np.ndarray]:
    """values: [metrics, number]; aps: [K, number], AP or PQ by category."""
    run = _run_of(matches, metrics)
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


def _run_of(matches: Matches | Segments, metrics: Sequence[Any]) -> _Run | _PanopticRun:
    return _Run(matches, metrics) if isinstance(matches, Matches) else _PanopticRun(matches, metrics)


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


class _PanopticRun:
    """The sums of a run by category, made once for all resamples."""

    def __init__(self, segments: Segments, metrics: Sequence[Quality]) -> None:
        self.metrics = metrics
        self.groups = {"": slice(None), "_things": segments.things, "_stuff": ~segments.things}
        shape, at = (len(segments.category_ids), len(segments.image_ids)), (segments.labels, segments.images)
        columns = (segments.ious, segments.tp, segments.fp, segments.fn)
        self.sums = [sparse.csr_matrix((column.astype(np.float64), at), shape=shape) for column in columns]

    def at(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """weights [N, B] -> the qualities [M, B], and PQ by category [K, B]: sums of IoU / (TP + FP / 2 + FN / 2)."""
        iou, tp, fp, fn = (one @ weights for one in self.sums)
        whole = np.where(tp + fp + fn > 0, tp + (fp + fn) / 2, np.nan)
        tables = {"PQ": iou / whole, "SQ": iou / np.maximum(tp, 1) + 0 * whole, "RQ": tp / whole}
        return np.stack([_mean(tables[one.score][self.groups[one.group]]) for one in self.metrics]), tables["PQ"]


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the first axis, without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    count = known.sum(0)
    return np.where(count, np.where(known, values, 0.0).sum(0) / np.maximum(count, 1), np.nan)


def split_of(matches: Matches | Segments) -> str:
    """A fingerprint of the images, categories and objects: equal for runs that were evaluated on the same split."""
    digest = hashlib.sha256()
    for column in matches.truth:
        digest.update(np.ascontiguousarray(column, np.int64).tobytes())
    return digest.hexdigest()[:16]
