"""The rows' numbers -> the statistics: differences to a baseline, and what is not resolved from the best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from analysis.reading.runs import Run
from analysis.statistics import power, seeds, verdict
from analysis.statistics.images import Resamples, resamples_of
from analysis.tables.cells import NOTHING, Column, ends, metric_column, rounded
from analysis.tables.comparison import interval_of
from analysis.tables.rows import Row
from fovea_detr.errors import RunFolderError
from fovea_detr.evaluation.matches import MATCH_FILES, OF_BOXES, OF_SEGMENTS, MatchFile, read_matches
from fovea_detr.runs.folder import Metric

if TYPE_CHECKING:
    from analysis.statistics.verdict import Difference

CACHE = ".resamples"  # in the study's folder
ALWAYS = 3  # AP, AP50, AP75 (of masks the same), so that one cache serves most tables
Resampled = Mapping[str, Mapping[Path, Resamples]]  # by metric and run


def resample(rows: Sequence[Row], metrics: Sequence[str]) -> Resampled:
    """Of every finished run with matches, with a progress bar in a terminal; the first time takes minutes.

    Matches that cannot be used are a problem of their run.
    """
    found: dict[str, dict[Path, Resamples]] = {}
    for file, asked in asked_of(metrics):
        known = resampled_metrics(file)
        names = list(dict.fromkeys([*known[: None if file is OF_SEGMENTS else ALWAYS], *asked]))
        own: dict[Path, Resamples] = {}
        for run in tqdm(with_matches(rows, file), desc="resampling images", unit="run", leave=False, disable=None):
            with noted(run):
                own |= resamples_of([run.path], names, run.path.parent / CACHE, file=file)
        found |= dict.fromkeys(asked, own)
    return found


def resampled_metrics(file: MatchFile) -> list[str]:
    """All but AR, which takes longer than AP: it has the seeds' interval alone."""
    return [one.name for one in file.metrics if not isinstance(one, Metric) or one.table == "precision"]


def asked_of(metrics: Sequence[str]) -> Iterator[tuple[MatchFile, list[str]]]:
    """The files of matches that these metrics need, each with its own."""
    for file in MATCH_FILES:
        known = resampled_metrics(file)
        if asked := [name for name in metrics if name in known]:
            yield file, asked


def with_matches(rows: Iterable[Row], file: MatchFile = OF_BOXES) -> list[Run]:
    return [run for row in rows if row.is_finished for run in row.counted if (run.path / file.name()).exists()]


def without_matches(rows: Sequence[Row], metrics: Sequence[str]) -> Iterator[str]:
    """A line for each file of matches that finished runs should have and lack."""
    for file, asked in asked_of(metrics):
        runs = [run for row in rows if row.is_finished for run in row.counted if file.score in run.numbers]
        lacking = [run for run in runs if not (run.path / file.name()).exists()]
        if lacking:
            yield (
                f"{', '.join(asked)}: {len(lacking)} of {len(runs)} runs have no {file.name()}: their differences are "
                "by the seeds alone; python -m fovea_detr.evaluation matches RUN makes it"
            )


@contextmanager
def noted(run: Run) -> Iterator[None]:
    """What is wrong with the matches of a run becomes one of its problems."""
    try:
        yield
    except RunFolderError as error:
        run.problems += [] if str(error) in run.problems else [str(error)]


def samples(rows: Iterable[Row], metric: str, resampled: Resampled) -> dict[str, verdict.Row]:
    """The finished rows that have the metric, by label."""
    found, resamples = {}, resampled.get(metric, {})
    arrays = {path: one.values for path, one in resamples.items()}
    for row in rows:
        numbers = {run.path: run.numbers[metric] for run in row.counted if metric in run.numbers}
        if numbers and row.is_finished:
            found[row.label] = _sample(numbers, arrays, metric, resamples)
    return found


def _sample(
    numbers: Mapping[Path, float],
    arrays: Mapping[Path, Mapping[str, np.ndarray]],
    name: str,
    resamples: Mapping[Path, Resamples],
) -> verdict.Row:
    """Numbers by run; with the arrays of this name where every run has one, on one split."""
    own = [arrays[path][name] for path in numbers if name in arrays.get(path, {})]
    splits = {resamples[path].split for path in numbers if path in resamples}
    whole = len(own) == len(numbers) and len(splits) == 1
    values = list(numbers.values())
    return verdict.Row(values, np.stack(own), splits.pop()) if whole else verdict.Row(values)


def differences(
    rows: Sequence[Row], baseline: Row, metrics: Sequence[str], resamples: Resampled
) -> dict[str, dict[str, Difference]]:
    """By metric and label: every other finished row of the baseline's study minus the baseline."""
    study = [row for row in rows if row.study == baseline.study]
    found = {metric: samples(study, metric, resamples) for metric in metrics}
    return {
        metric: verdict.against(own, baseline.label)
        for metric, own in found.items()
        if baseline.label in own and len(own) > 1
    }


def mark_best(rows: Sequence[Row], metrics: Sequence[str]) -> Iterator[str]:
    """Mark each study's best row and all that are not resolved from it -> lines on rows that are not compared."""
    for study in dict.fromkeys(row.study for row in rows):
        own = [row for row in rows if row.study == study and row.is_finished]
        several = [row for row in own if len(row.counted) > 1]
        for metric in metrics if len(several) > 1 else ():
            found = {label: one for label, one in samples(several, metric, {}).items() if len(one.values) > 1}
            best = verdict.not_resolved_from_best(found) if len(found) > 1 else set()
            for row in several:
                row.best |= {metric} if row.label in best else set()
            if len(best) == len(found) > 2:
                yield f"{study}: {metric}: no row is resolved from the best; --plan tells how many seeds it takes"
        if 0 < len(several) < len(own):
            yield f"{study}: rows with one seed are never marked as best: their spread over seeds is unknown"


def contrast(rows: Sequence[Row], a: Row, b: Row, metrics: Sequence[str]) -> dict[str, Difference]:
    """By metric: b minus a, planned. The spread is pooled over the rows of their studies."""
    resamples = resample((a, b), metrics)
    study = [row for row in rows if row.study in (a.study, b.study)]
    found = {metric: samples(study, metric, resamples) for metric in metrics}
    pair = (a.label, b.label)
    return {metric: verdict.planned([pair], own)[0] for metric, own in found.items() if own.keys() >= set(pair)}


def by_category(a: Row, b: Row) -> dict[str, Difference]:
    """AP of each category that both have, b minus a."""
    resamples = resample((a, b), ("AP",)).get("AP", {})
    arrays = {path: one.by_category for path, one in resamples.items()}

    def categories(row: Row) -> dict[str, verdict.Row]:
        found = {run.path: run.ap_by_category for run in row.counted if row.is_finished}
        names = dict.fromkeys(name for own in found.values() for name in own)
        numbers = {name: {path: own.get(name, math.nan) for path, own in found.items()} for name in names}
        known = {name: own for name, own in numbers.items() if not any(map(math.isnan, own.values()))}
        return {name: _sample(own, arrays, name, resamples) for name, own in known.items()}

    return verdict.by_category(categories(a), categories(b))


def by_error(a: Row, b: Row, file: MatchFile = OF_BOXES) -> dict[str, Difference]:
    """The AP50 that each of TIDE's types of errors costs, b minus a; empty if a row has no matches."""
    both = [{name: verdict.Row(values) for name, values in errors_of(row, file).items()} for row in (a, b)]
    return verdict.by_error(*both) if all(both) else {}


def errors_of(row: Row, file: MatchFile = OF_BOXES) -> dict[str, list[float]]:
    """The AP50 that each of TIDE's types of errors costs, by seed, of the finished runs with matches.

    file: of boxes or of masks.
    """
    found: dict[str, list[float]] = {}
    for run in with_matches([row], file):
        with noted(run):
            for name, value in read_matches(run.path, file.name()).errors_by_type.items():
                found.setdefault(name, []).append(value)
    return found


def line(name: str, told: Difference) -> list[str]:
    """Name, difference, interval and words, in per cent."""
    shown, interval = metric_column(name).difference(), interval_of(told)
    return [name, rounded(shown, told.delta), ends(shown, *interval) if interval else NOTHING, told.words]


def why(columns: Iterable[Column], found: Mapping[str, Mapping[str, Difference]]) -> Iterator[str]:
    """The parts of each verdict: the intervals of seeds, of images, of both, and the test."""
    for column in (column for column in columns if column.name in found):
        shown = column.difference()
        for label, told in found[column.name].items():
            parts = {"seeds": told.seeds_interval, "images": told.images_interval, "both": told.combined_interval}
            texts = [f"{name} {ends(shown, *one)}" for name, one in parts.items() if one]
            words = "; ".join(filter(None, [*texts, told.method, told.words, told.note]))
            yield f"{column.name} of {label}: {rounded(shown, told.delta)}; {words}"


def plans(rows: Sequence[Row], delta: float, found: Mapping[str, Mapping[str, Difference]]) -> Iterator[str]:
    """For each study, a plan for each of AP, segm_AP and PQ that is compared; for AP if none is.

    found: by metric and label.
    """
    scores = [file for file in MATCH_FILES if file.score in found] or [OF_BOXES]
    studies = dict.fromkeys(row.study for row in rows)
    for study in studies:
        own = [row for row in rows if row.study == study and row.is_finished]
        head = f"plan of {study}" if len(studies) > 1 else "plan"
        for file in scores:
            told = {row.label: one for row in own if (one := found.get(file.score, {}).get(row.label)) is not None}
            yield f"{head}: {delta:g} {file.score}{plan(own, delta, told, file)}"


def plan(rows: Sequence[Row], delta: float, found: Mapping[str, Difference], file: MatchFile) -> str:
    """How many seeds and GPU-hours resolve a difference of `delta` (per cent), by the spread of these finished rows.

    Rows at the floor are left out: their spread is not that of the others.
    """
    metric, several = file.score, [values for row in rows if len(values := row.values(file.score)) > 1]
    learned = [values for values in several if fmean(values) >= seeds.FLOOR]
    if not learned:
        which = "row that has learned" if several else "row"
        return f": no {which} has two finished seeds, so the spread of training is unknown"
    spread, error = seeds.pooled(learned), _images_error(found)
    number = power.plan(delta / 100, spread.sd, error or 0.0)
    basis = f"seeds' standard deviation {100 * spread.sd:.2f} {metric} ({spread.df:.0f} degrees of freedom)"
    if len(learned) > 1 and not all(seeds.fit_the_pool(learned)):
        sds = [100 * stdev(values) for values in learned]
        basis += f", of rows whose spreads differ, {min(sds):.2f} to {max(sds):.2f}"
    lost, floor = len(several) - len(learned), 100 * seeds.FLOOR
    basis += f", without rows below {metric} {floor:g}: {lost}" if lost else ""
    reason = f"add --baseline and the metric {metric}" if with_matches(rows, file) else "no run has matches"
    images = f"images not counted: {reason}" if error is None else f"images' standard error {100 * error:.2f} {metric}"
    if number is None:
        return f": no number of seeds: more images ({basis}, {images})"
    hours = [cell.mean for row in rows if (cell := row.mean("gpu_hours")) is not None]
    cost = f", {number * sum(hours):.4g} GPU-hours for the {len(hours)} rows" if hours else ""
    return f" at 80 % power: {number} seeds a row{cost} ({basis}, {images})"


def _images_error(found: Mapping[str, Difference]) -> float | None:
    """Of a difference, the standard error over images: the median; None if it is not known."""
    images = [told.images_interval for told in found.values() if told.images_interval is not None]
    return float(np.median([(one.high - one.low) / (2 * 1.96) for one in images])) if images else None
