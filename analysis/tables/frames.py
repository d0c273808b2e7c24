"""Rows -> tidy pandas frames, which figures, notebooks, the page and exports draw from. Metrics are fractions.

Every frame has the columns study, variant (the row's label), run (the folder), seed, counts (whether the run is one of
those that the table averages), finished (whether the row's numbers are comparable) and a column for each axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.reading.outcome import gpu_hours, node_of, stored
from analysis.reading.runs import Run
from analysis.reading.settings import SEED
from analysis.tables.comparison import interval_of
from analysis.tables.rows import Row
from analysis.tables.table import Table
from fovea_detr.runs.folder import METRICS
from fovea_detr.runs.state import number

if TYPE_CHECKING:
    from analysis.statistics.verdict import Difference

HEADS = ("study", "variant", "run", "seed", "counts", "finished")


def runs_frame(rows: Sequence[Row], axes: Sequence[str]) -> pd.DataFrame:
    """One line per run: state, notes, metrics of the last evaluation and cost."""
    lines = [
        head | {"state": run.standing.word, "notes": "; ".join([*row.notes, *run.problems])} | run.numbers
        for row, run, head in _heads(rows, axes)
    ]
    frame = pd.DataFrame(lines)
    return frame.reindex(columns=[*frame.columns, *({"AP"} - set(frame.columns))])


def epochs_frame(rows: Sequence[Row], axes: Sequence[str]) -> pd.DataFrame:
    """One line per run and epoch: losses, metrics, minutes and gpu_hours so far, images_per_second."""
    lines = [head | _epoch(run, line) for _, run, head in _heads(rows, axes) for line in run.history]
    return pd.DataFrame(lines, columns=None if lines else [*HEADS, *axes, "epoch", "minutes", "gpu_hours", "AP"])


def categories_frame(rows: Sequence[Row], axes: Sequence[str]) -> pd.DataFrame:
    """One line per run and category: its AP in the last evaluation."""
    runs = _heads(rows, axes)
    lines = [head | {"category": name, "AP": ap} for _, run, head in runs for name, ap in run.ap_by_category.items()]
    return pd.DataFrame(lines, columns=[*HEADS, *axes, "category", "AP"])


def _heads(rows: Sequence[Row], axes: Sequence[str]) -> Iterator[tuple[Row, Run, dict[str, Any]]]:
    for row in rows:
        for run in row.runs:
            seed = run.settings.get(SEED, "")
            own = (row.study, row.label, run.path.name, int(seed) if seed.isdigit() else None, run in row.counted)
            head = dict(zip(HEADS, (*own, row.is_finished), strict=True))
            yield row, run, head | {key: run.settings.get(key) for key in axes if key != SEED}


def _epoch(run: Run, line: dict[str, Any]) -> dict[str, float]:
    timing = node_of(line.get("timing"))
    cost = {
        "minutes": number(timing.get("total_seconds")) / 60,
        "gpu_hours": gpu_hours(timing.get("gpu_hours"), run.provenance),
        "images_per_second": number(timing.get("images_per_second")),
    }
    found = {name: stored(name, value) for name, value in line.items()}
    return cost | {name: value for name, value in found.items() if name in METRICS or not math.isnan(value)}


def table_frame(table: Table) -> pd.DataFrame:
    """One line per row: every column, mean and standard deviation."""
    return pd.DataFrame(table.records())


def differences_frame(found: Mapping[str, Difference]) -> pd.DataFrame:
    """One line per metric."""
    columns = ("metric", "difference", "low", "high", "verdict", "needs", "method")
    lines = [
        (metric, told.delta, *(interval_of(told) or (None, None)), told.verdict, told.needs, told.method)
        for metric, told in found.items()
    ]
    return pd.DataFrame(lines, columns=columns).set_index("metric")


def counted(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs that the table averages."""
    return frame.loc[frame["counts"].astype(bool)]


def in_percent(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Without the lines that lack the metric; the metric as the field writes it: 41.0."""
    return frame.dropna(subset=[metric]).assign(**{metric: lambda kept: 100 * kept[metric]})


def over_seeds(epochs: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Per variant and epoch that all its counted runs have reached: x and mean, std (NaN for one run) and n of y."""
    lines = counted(epochs).dropna(subset=[y])
    runs = lines.groupby("variant")["run"].nunique()
    found = lines.groupby(["variant", "epoch"], sort=False).agg(
        x=(x, "mean"), mean=(y, "mean"), std=(y, "std"), n=(y, "size")
    )
    whole = found["n"] == runs.reindex(found.index.get_level_values("variant")).to_numpy()
    return found.loc[whole].reset_index()
