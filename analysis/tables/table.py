"""Runs -> the table: rows, columns, cells and notes. Imports no torch; names no axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.reading.runs import Run
from analysis.reading.settings import overrides, short_name, varying_keys
from analysis.tables.cells import Cell, Column, Value, data_names, data_values, show
from analysis.tables.comparison import find_baseline, mark_best, with_differences, with_published
from analysis.tables.filters import Condition, lookup, parse_conditions
from analysis.tables.rows import Row, duplicate_runs, make_rows, note_differences, note_unfinished, sorted_rows
from fovea_detr.config.groups import natural
from fovea_detr.errors import UserError
from fovea_detr.runs.folder import METRICS

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = (
    Column("best_AP", "best AP", 3, spread=True, drop_order=23),
    Column("epochs", "epochs", 0, drop_order=22),
    Column("total_batch", "total batch", 0, drop_order=25),
    Column("gpu_hours", "GPU-hours", 1, drop_order=24),
    Column("minutes", "minutes", 1, drop_order=26),
    Column("images_per_second", "images/s", 1, drop_order=27),
    Column("inference_ms", "ms/image", 1, drop_order=28),
    Column("parameters", "parameters", 0, drop_order=29),
)
STUDY, RUN, STATE, NOTES = (Column(name, name) for name in ("study", "run", "state", "notes"))
N = Column("n", "n", 0)
RESERVED = {column.name for column in (STUDY, RUN, STATE, N, NOTES, *NUMBERS)} | set(METRICS)


@dataclass(frozen=True)
class Options:
    """The options of the command, as typed."""

    metrics: tuple[str, ...] = ("AP", "AP50")
    baseline: str | None = None
    where: tuple[str, ...] = ()
    sort: str | None = None
    reverse: bool = False
    by_seed: bool = False

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise UserError(f"there is no metric {name}; choose from {', '.join(METRICS)}, or all")


def metric_names(text: str) -> tuple[str, ...]:
    """The value of --metrics: `all`, or `AP,AP50`."""
    return tuple(METRICS) if text == "all" else tuple(dict.fromkeys(text.split(",")))


@dataclass
class Table:
    """notes: the texts behind the numbers in the notes column. warnings: further lines, printed below the table."""

    columns: list[Column]
    rows: list[Row]
    runs: list[Run]
    notes: list[str]
    warnings: list[str]

    def text(self, row: Row, column: Column) -> str:
        """A cell as printed."""
        if column is NOTES:
            return " ".join(str(self.notes.index(note) + 1) for note in row.notes)
        return show(column, row.cells.get(column.name))

    def data_cells(self, row: Row) -> Iterator[tuple[Column, Cell]]:
        """A row's cells as written to data files: notes in full."""
        for column in self.columns:
            yield column, "; ".join(row.notes) if column is NOTES else row.cells.get(column.name)

    def data_names(self) -> list[str]:
        """The column names of a data file."""
        return [name for column in self.columns for name in data_names(column)]

    def records(self) -> Iterator[dict[str, float | int | str | None]]:
        """Rows for data files: the printed digits as numbers, the standard deviation as a separate column."""
        for row in self.rows:
            values = [value for column, cell in self.data_cells(row) for value in data_values(column, cell)]
            yield dict(zip(self.data_names(), values, strict=True))

    def frame(self) -> pd.DataFrame:
        import pandas as pd  # only here: printing needs no pandas

        return pd.DataFrame(list(self.records()), columns=self.data_names())


def make_table(runs: Sequence[Run], options: Options | None = None) -> Table:
    """Raises UserError for an invalid filter, baseline or sort column."""
    options = options or Options()
    rows = select_rows(runs, options)
    runs = [run for row in rows for run in row.runs]
    columns = fill_settings(rows, runs, options.by_seed)
    rows.sort(key=lambda row: [(row.cells[c.name] is None, natural(show(c, row.cells[c.name]))) for c in columns])
    columns += fill_numbers(rows, options.metrics)
    baseline = find_baseline(rows, options.baseline) if options.baseline else None
    if baseline is not None:
        columns = with_differences(rows, baseline, columns)
    columns = with_published(rows, columns)
    add_notes(rows, baseline)
    mark_best(rows, columns)
    rows = sorted_rows(rows, columns, options.sort, options.reverse) if options.sort else rows
    notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    if notes:
        columns.insert(columns.index(STATE) + 1, NOTES)
    return Table(columns, rows, runs, notes, duplicate_runs(runs))


def select_rows(runs: Sequence[Run], options: Options) -> list[Row]:
    """Conditions on settings and states select runs; conditions on numbers select rows by their means."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    numbers = dict.fromkeys([N.name, *METRICS, *(column.name for column in NUMBERS)])
    asked = parse_conditions(options.where, [*numbers, STUDY.name, STATE.name, *keys])

    def run_matches(run: Run, condition: Condition) -> bool:
        others = {STUDY.name: run.study, STATE.name: run.standing.word}
        return condition.holds(lookup(condition.key, run.settings, others))

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
    """The columns that identify a row: study (if several), and the varying settings; fills the cells."""
    settings = [row.settings for row in rows]
    by_hand = {key for run in runs for key in overrides(run.path.name)}
    keys = varying_keys(settings, by_hand)
    known = {key for row in settings for key in row}
    columns = [STUDY] if len({row.study for row in rows}) > 1 else []
    columns += [Column(key, short_name(key, known, RESERVED)) for key in keys] or [RUN]
    for row in rows:
        row.cells |= {key: row.settings.get(key) for key in keys}
        row.cells |= {STUDY.name: row.study, RUN.name: row.runs[0].path.name if by_seed else row.name}
    return columns


def fill_numbers(rows: Sequence[Row], metrics: Sequence[str]) -> list[Column]:
    """The columns of state, metrics and cost; fills the cells."""
    scores = [Column(name, name, 3, is_metric=True, spread=True, drop_order=i) for i, name in enumerate(metrics)]
    for row in rows:
        row.cells[STATE.name] = row.state
        row.cells |= {column.name: row.mean(column.name) for column in (*scores, *NUMBERS)}
        scored = next((cell for name in metrics if isinstance(cell := row.cells[name], Value)), None)
        row.cells[N.name] = Value(scored.n) if scored else None
    return [STATE, N, *scores, *NUMBERS]


def add_notes(rows: Sequence[Row], baseline: Row | None) -> None:
    for study in dict.fromkeys(row.study for row in rows):
        of_study = [row for row in rows if row.study == study]
        note_differences(of_study, baseline if baseline and baseline.study == study else None)
    for row in rows:
        note_unfinished(row)
