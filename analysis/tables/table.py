"""Runs -> the table: rows, columns, cells and notes. Imports no torch; names no axis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from analysis.reading.outcome import ON_DEMAND
from analysis.reading.runs import Run
from analysis.reading.settings import labels, overrides, short_name, varying_keys
from analysis.tables.cells import Column, Value, data, metric_column, show
from analysis.tables.comparison import find_row, with_differences, with_published
from analysis.tables.filters import Condition, as_fraction, full_key, parse_conditions
from analysis.tables.notes import add_notes
from analysis.tables.rows import BEST, Row, duplicate_runs, make_rows, name_of, sorted_rows
from fovea_detr.config.groups import natural
from fovea_detr.errors import UserError
from fovea_detr.runs.folder import ALL_METRICS, METRICS, QUALITIES, SEGM

if TYPE_CHECKING:
    from analysis.statistics.verdict import Difference

NUMBERS = (
    Column("epochs", "epochs", 0, drop_order=22),
    Column("total_batch", "total batch", 0, drop_order=25),
    Column("gpu_hours", "GPU-hours", 1, spread=True, drop_order=24),
    Column("minutes", "minutes", 1, spread=True, drop_order=26),
    Column("images_per_second", "images/s", 1, spread=True, drop_order=27),
    Column("inference_ms", "ms/image", 1, spread=True, drop_order=28),
    Column("peak_gib", "peak GiB", 1, spread=True, drop_order=29),
    Column("parameters", "parameters", 0, drop_order=30),
)
STUDY, RUN, STATE, NOTES = (Column(name, name) for name in ("study", "run", "state", "notes"))
N = Column("n", "n", 0)
MOST_TESTED = 100  # rows
ALL = ("all",)
LISTED = f"{', '.join(METRICS)}; of masks: {SEGM}AP, ...; panoptic: {', '.join(QUALITIES)}; all: those that runs have"
RESERVED = {column.name for column in (STUDY, RUN, STATE, N, NOTES, *NUMBERS)} | {*ALL_METRICS, BEST}


@dataclass(frozen=True)
class Options:
    """The options of the command, as typed. metrics: also as text, `AP,AP50` or `all`, of boxes and what the runs have.

    percent: AP as 41.0, else 0.410. tested: with verdicts and marks. Raises UserError for an unknown metric.
    """

    metrics: Sequence[str] = ("AP", "AP50")
    baseline: str | None = None
    where: tuple[str, ...] = ()
    sort: str | None = None
    reverse: bool = False
    by_seed: bool = False
    columns: tuple[str, ...] = ()
    percent: bool = True
    tested: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.metrics, str):
            object.__setattr__(self, "metrics", tuple(dict.fromkeys(self.metrics.split(","))))
        for name in self.metrics:
            if name not in ALL_METRICS and self.metrics != ALL:
                raise UserError(f"there is no metric {name}; choose from {LISTED}; others by --columns")

    def metrics_of(self, runs: Sequence[Run]) -> tuple[str, ...]:
        """Of `all` those of boxes, and those of masks and panoptic segments that any of these runs has."""
        held = {*METRICS, *(name for run in runs for name in run.numbers)}
        return tuple(name for name in ALL_METRICS if name in held) if self.metrics == ALL else tuple(self.metrics)


@dataclass
class Table:
    """columns: those shown; every: also those that --columns leaves out, for data files.

    notes: the texts behind the numbers in the notes column. warnings: further lines, printed below the table. verdicts:
    by metric and label of the row.
    """

    columns: list[Column]
    every: list[Column]
    rows: list[Row]
    runs: list[Run]
    notes: list[str]
    warnings: list[str]
    baseline: Row | None = None
    verdicts: Mapping[str, Mapping[str, Difference]] = field(default_factory=dict)

    @property
    def first_metric(self) -> str:
        return next((column.name for column in self.every if column.is_metric), "AP")

    def text(self, row: Row, column: Column) -> str:
        """A cell as printed."""
        if column is NOTES:
            return " ".join(str(self.notes.index(note) + 1) for note in row.notes)
        return show(column, row.cells.get(column.name))

    def records(self) -> Iterator[dict[str, float | str | None]]:
        """Rows for data files, unrounded, metrics as fractions; the standard deviation is a column of its own."""
        for row in self.rows:
            cells = {**row.cells, NOTES.name: "; ".join(row.notes) or None}
            found = [data(column, cells.get(column.name)) for column in self.every]
            yield {"row": row.label} | {name: value for one in found for name, value in one.items()}


def make_table(runs: Sequence[Run], options: Options | None = None) -> Table:
    """Raises UserError for an invalid filter, baseline, column or sort column."""
    options = options or Options()
    rows = select_rows(runs, options)
    runs = [run for row in rows for run in row.runs]
    options = replace(options, metrics=options.metrics_of(runs))
    columns = fill_settings(rows, runs, options.by_seed)
    rows.sort(key=lambda row: [(row.cells[c.name] is None, natural(show(c, row.cells[c.name]))) for c in columns])
    columns += fill_numbers(rows, options)
    baseline = find_row(rows, options.baseline) if options.baseline else None
    warnings, verdicts = duplicate_runs(runs), {}
    if options.tested and (baseline is not None or any(len(row.counted) > 1 for row in rows)):
        verdicts = test_rows(rows, baseline, options, warnings)
    if baseline is not None:
        columns = with_differences(rows, baseline, columns, verdicts)
    columns = with_published(rows, columns)
    add_notes(rows, options.metrics, baseline)
    rows = sorted_rows(rows, columns, options.sort, options.reverse) if options.sort else rows
    notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    if notes:
        columns.insert(columns.index(STATE) + 1, NOTES)
    shown = chosen(columns, options.columns) if options.columns else columns
    return Table(shown, columns, rows, runs, notes, warnings, baseline, verdicts)


def test_rows(
    rows: Sequence[Row], baseline: Row | None, options: Options, warnings: list[str]
) -> Mapping[str, Mapping[str, Difference]]:
    """Mark the best rows, and compare each with the baseline -> verdicts; adds to the warnings."""
    if len(rows) > MOST_TESTED:
        warnings.append(f"more than {MOST_TESTED} rows: neither tested nor marked; choose some with --where")
        return {}
    from analysis.tables import verdicts  # only here: it loads scipy

    warnings += verdicts.mark_best(rows, options.metrics)
    if baseline is not None and not baseline.is_finished:
        warnings.append(f"no differences: the baseline, {baseline.label}, has not finished")
    if baseline is None or not baseline.is_finished:
        return {}
    warnings += verdicts.without_matches(rows, options.metrics)
    return verdicts.differences(rows, baseline, options.metrics, verdicts.resample(rows, options.metrics))


def chosen(columns: Sequence[Column], names: Sequence[str]) -> list[Column]:
    """The columns of these names or titles, in this order. Raises UserError for an unknown one."""
    known = {column.name: column for column in columns} | {column.title: column for column in columns}
    return [known[full_key(name.strip(), known)] for name in names]


def select_rows(runs: Sequence[Run], options: Options) -> list[Row]:
    """Conditions on settings and states select runs; conditions on numbers select rows by their means."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    numbers = dict.fromkeys([N.name, *ALL_METRICS, BEST, *(column.name for column in NUMBERS)])
    asked = parse_conditions(options.where, [*numbers, STUDY.name, STATE.name, *keys])
    asked = [as_fraction(one) if one.key in (*ALL_METRICS, BEST) else one for one in asked]

    def run_matches(run: Run, condition: Condition) -> bool:
        others = {STUDY.name: run.study, STATE.name: run.standing.word}
        return condition.holds((others | run.settings).get(condition.key))

    def row_matches(row: Row, condition: Condition) -> bool:
        value = row.mean(condition.key)
        return condition.holds(len(row.counted) if condition.key == N.name else value and value.mean)

    of_runs = [condition for condition in asked if condition.key not in numbers]
    of_rows = [condition for condition in asked if condition.key in numbers]
    rows = make_rows((run for run in runs if all(run_matches(run, c) for c in of_runs)), options.by_seed)
    rows = [row for row in rows if all(row_matches(row, c) for c in of_rows)]
    if not rows:
        raise UserError(f"none of {len(runs)} runs matches {' and '.join(condition.text for condition in asked)}")
    return rows


def fill_settings(rows: Sequence[Row], runs: Sequence[Run], by_seed: bool) -> list[Column]:
    """The columns that identify a row: study (if several), and the varying settings; fills the cells and labels."""
    settings = [row.settings for row in rows]
    by_hand = {key for run in runs for key in overrides(run.path.name)}
    keys = varying_keys(settings, by_hand)
    known = {key for row in settings for key in row}
    several = len({row.study for row in rows}) > 1
    columns = [STUDY] if several else []
    columns += [Column(key, short_name(key, known, RESERVED)) for key in keys] or [RUN]
    told = labels(settings, keys)
    counts = Counter((row.study, label) for row, label in zip(rows, told, strict=True))
    for row, label in zip(rows, told, strict=True):
        name = row.runs[0].path.name if by_seed else name_of(row)
        label = f"{label} ({name})" if label and counts[row.study, label] > 1 else label  # a copied run
        row.label = f"{row.study}: {label or name}" if several else label or name
        row.cells |= {key: row.settings.get(key) for key in keys}
        row.cells |= {STUDY.name: row.study, RUN.name: name}
    return columns


def on_demand(rows: Sequence[Row], options: Options) -> list[Column]:
    """Columns that are named by --columns alone, and that these runs have: `ema_AP`, `val_loss`, `class_error`."""
    names = {name for row in rows for run in row.runs for name in run.numbers if name.startswith(ON_DEMAND)}
    return [
        replace(metric_column(name, percent=options.percent), is_metric=False)
        if name.startswith("ema_")
        else Column(name, name, 3, spread=True)
        for name in options.columns
        if name in names
    ]


def fill_numbers(rows: Sequence[Row], options: Options) -> list[Column]:
    """The columns of state, metrics and cost; fills the cells. A total batch that differs between seeds has no mean."""
    scores = [metric_column(name, 2 * i, percent=options.percent) for i, name in enumerate(options.metrics)]
    scores += on_demand(rows, options)
    best = replace(metric_column(BEST, 23, percent=options.percent), title="best AP", is_metric=False)
    for row in rows:
        row.cells |= {column.name: row.mean(column.name) for column in (*scores, best, *NUMBERS)}
        batches = sorted(set(row.values("total_batch")))
        if len(batches) > 1:
            row.cells["total_batch"] = " / ".join(f"{batch:.0f}" for batch in batches)
        values = {name: cell for name in options.metrics if isinstance(cell := row.cells[name], Value)}
        n = next((cell.n for cell in values.values()), None)
        row.cells |= {name: replace(cell, of=n or 0) for name, cell in values.items()}
        row.cells |= {STATE.name: row.state, N.name: Value(n) if n else None}
    return [STATE, N, *scores, best, *NUMBERS]
