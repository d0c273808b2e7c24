"""Runs -> the table: which rows, which columns, what stands in them, what is best. No torch, and no axis by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from analysis.reading.runs import Run
from analysis.reading.settings import overrides, short_name, varying_keys
from analysis.reading.variants import natural
from analysis.tables.cells import Column, Value, data_names, data_values, show
from analysis.tables.comparison import find_baseline, mark_best, with_differences, with_published
from analysis.tables.filters import Condition, conditions, lookup
from analysis.tables.rows import Row, make_rows, note_differences, note_unfinished, sorted_rows, twins
from fovea_detr.errors import UserError
from fovea_detr.runs.folder import METRICS

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = (
    Column("best_AP", "best AP", 3, spread=True, room=23),
    Column("epochs", "epochs", 0, room=22),
    Column("total_batch", "total batch", 0, room=25),
    Column("gpu_hours", "GPU-hours", 1, room=24),
    Column("minutes", "minutes", 1, room=26),
    Column("images_per_second", "images/s", 1, room=27),
    Column("inference_ms", "ms/image", 1, room=28),
    Column("parameters", "parameters", 0, room=29),
)
STUDY, RUN, STATE, N, NOTES = (
    Column("study", "study"),
    Column("run", "run"),
    Column("state", "state"),
    Column("n", "n", 0),
    Column("notes", "notes"),
)
RESERVED = {column.name for column in (STUDY, RUN, STATE, N, NOTES, *NUMBERS)} | set(METRICS)


@dataclass(frozen=True)
class Options:
    """What the user asked for, as typed."""

    metrics: tuple[str, ...] = ("AP", "AP50")
    baseline: str | None = None
    where: tuple[str, ...] = ()
    sort: str | None = None
    reverse: bool = False
    by_seed: bool = False

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise UserError(f"no metric {name}: there is {', '.join(METRICS)} (or all)")


@dataclass
class Table:
    """notes: the texts that the numbers in the rows' last column stand for. lines: what else must be said, below."""

    columns: list[Column]
    rows: list[Row]
    runs: list[Run]
    notes: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def texts(self, row: Row) -> list[str]:
        """The cells of a row as people read them."""
        return [self.text(row, column) for column in self.columns]

    def text(self, row: Row, column: Column) -> str:
        if column is NOTES:
            return " ".join(str(self.notes.index(note) + 1) for note in row.notes)
        return show(column, row.cells.get(column.name))

    def records(self) -> Iterator[dict[str, float | int | str | None]]:
        """A row as a data file has it: the same digits as numbers, spread in a column of its own, notes in full."""
        for row in self.rows:
            record: dict[str, float | int | str | None] = {}
            for column in self.columns:
                cell = "; ".join(row.notes) if column is NOTES else row.cells.get(column.name)
                record |= zip(data_names(column), data_values(column, cell), strict=True)
            yield record

    def frame(self) -> pd.DataFrame:
        import pandas as pd  # here alone: the terminal's table does without

        names = [name for column in self.columns for name in data_names(column)]
        return pd.DataFrame(list(self.records()), columns=names)


def make_table(runs: Sequence[Run], options: Options | None = None) -> Table:
    """Raises UserError, one line, for a filter, a baseline or a sorting that cannot be meant."""
    options = options or Options()
    rows = chosen_rows(runs, options)
    runs = [run for row in rows for run in row.runs]
    columns = fill_settings(rows, runs, options.by_seed)
    rows.sort(key=lambda row: [(row.cells[c.name] is None, natural(show(c, row.cells[c.name]))) for c in columns])
    columns += fill_numbers(rows, options.metrics)
    baseline = find_baseline(rows, options.baseline) if options.baseline else None
    if baseline is not None:
        columns = with_differences(rows, baseline, columns)
    columns = with_published(rows, columns)
    note_all(rows, baseline)
    mark_best(rows, columns)
    rows = sorted_rows(rows, columns, options.sort, options.reverse) if options.sort else rows
    table = Table(columns, rows, runs)
    table.notes = list(dict.fromkeys(note for row in table.rows for note in row.notes))
    if table.notes:
        table.columns.insert(columns.index(STATE) + 1, NOTES)
    table.lines = list(twins(runs))
    return table


def chosen_rows(runs: Sequence[Run], options: Options) -> list[Row]:
    """Conditions on settings and states choose runs; those on numbers choose rows, whose means they are about."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    numbers = dict.fromkeys([N.name, *METRICS, *(column.name for column in NUMBERS)])
    asked = conditions(options.where, [*numbers, STUDY.name, STATE.name, *keys])

    def fits(run: Run, condition: Condition) -> bool:
        others = {STUDY.name: run.study, STATE.name: run.standing.word}
        return condition.holds(lookup(condition.key, run.settings, others))

    def row_fits(row: Row, condition: Condition) -> bool:
        value = row.mean(condition.key)
        return condition.holds(len(row.counted) if condition.key == N.name else value and value.mean)

    of_runs = [condition for condition in asked if condition.key not in numbers]
    of_rows = [condition for condition in asked if condition.key in numbers]
    rows = make_rows((run for run in runs if all(fits(run, c) for c in of_runs)), options.by_seed)
    rows = [row for row in rows if all(row_fits(row, c) for c in of_rows)]
    if not rows:
        raise UserError(f"no run of {len(runs)} fits {' and '.join(condition.text for condition in asked)}")
    return rows


def fill_settings(rows: Sequence[Row], runs: Sequence[Run], by_seed: bool) -> list[Column]:
    """The columns that say what a row is, filled: study (if there are several), and what varies."""
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
    scores = [Column(name, name, 3, best=True, spread=True, room=index) for index, name in enumerate(metrics)]
    for row in rows:
        row.cells[STATE.name] = row.state
        row.cells |= {column.name: row.mean(column.name) for column in (*scores, *NUMBERS)}
        scored = next((cell for name in metrics if isinstance(cell := row.cells[name], Value)), None)
        row.cells[N.name] = Value(scored.n) if scored else None
    return [STATE, N, *scores, *NUMBERS]


def note_all(rows: Sequence[Row], baseline: Row | None) -> None:
    for study in dict.fromkeys(row.study for row in rows):
        of_study = [row for row in rows if row.study == study]
        note_differences(of_study, baseline if baseline and baseline.study == study else None)
    for row in rows:
        note_unfinished(row)
