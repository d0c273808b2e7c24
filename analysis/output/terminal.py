"""The table for a terminal of a given width, and the notes and warnings below it. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from analysis.reading.runs import Run
from analysis.tables.cells import Column
from analysis.tables.rows import Row
from analysis.tables.table import Table
from fovea_detr.runs.state import BROKEN, FOREIGN

NARROWEST = 7  # a text keeps at least this many characters; numbers are never cut
GAP = "  "
MARK = "*"


def render(table: Table, width: int, *, bold: bool = False) -> str:
    """The table in `width` characters: drops columns by `drop_order`, names them below, then cuts the widest texts.

    MARK is behind what is not resolved from the best, which is bold, too.
    """
    marked = {name for row in table.rows for name in row.best}  # their whole columns have room for the mark

    def cell(row: Row, column: Column) -> str:
        mark = MARK if column.name in row.best else " " if column.name in marked else ""
        return table.text(row, column) + mark

    lines = {column: [column.title, *(cell(row, column) for row in table.rows)] for column in table.columns}
    widths = {column: max(map(len, texts)) for column, texts in lines.items()}
    dropped = []
    while _total(widths, cut=True) > width and any(column.drop_order for column in widths):
        dropped.append(max(reversed(widths), key=lambda column: column.drop_order))
        del widths[dropped[-1]]
    while _total(widths) > width and (wide := [c for c in widths if _may_be_cut(c) and widths[c] > NARROWEST]):
        widths[max(wide, key=lambda column: widths[column])] -= 1
    shown = zip(*(lines[column] for column in widths), strict=True)
    text = "\n".join(aligned(shown, list(widths.values()), [column.is_number for column in widths]))
    if bold:
        text = re.sub(r"\S+(?: ± \S+)?(?: \(n \d+\))?\*(?=\s|$)", "\033[1m\\g<0>\033[0m", text)
    if dropped:
        names = ", ".join(column.title for column in table.columns if column in dropped)
        text += f"\ncolumns omitted to fit the terminal: {names}"
    return text


def _total(widths: dict[Column, int], cut: bool = False) -> int:
    """The width of a line; cut: with every text that may be cut at 2 * NARROWEST."""
    used = [min(w, 2 * NARROWEST) if cut and _may_be_cut(column) else w for column, w in widths.items()]
    return sum(used) + len(GAP) * (len(used) - 1)


def _may_be_cut(column: Column) -> bool:
    """Texts that are never dropped; a verdict is dropped as a whole."""
    return not column.is_number and not column.drop_order


def aligned(lines: Iterable[Sequence[str]], widths: Sequence[int], right: Sequence[bool]) -> Iterator[str]:
    """Cells in columns of these widths, aligned to the right where that says so; what is longer is cut."""
    for line in lines:
        cells = [text if len(text) <= w else f"{text[: w - 1]}…" for text, w in zip(line, widths, strict=True)]
        padded = zip(cells, widths, right, strict=True)
        yield GAP.join(cell.rjust(w) if is_right else cell.ljust(w) for cell, w, is_right in padded).rstrip()


def footer(table: Table, text: str) -> Iterator[str]:
    """Lines below the table: notes, warnings, problems of single runs, and states that the table had to cut."""
    yield from (f"{number}: {note}" for number, note in enumerate(table.notes, 1))
    yield from table.warnings
    told = {BROKEN, FOREIGN, "done"}  # by a problem, or by the word alone
    shown = {row.state for row in table.rows if row.state in text}
    for run in table.runs:
        state = [] if run.standing.word in told or run.state in shown else [run.state]
        yield from (f"{run.path}: {line}" for line in (*state, *run.problems))
    yield from none_finished(table.runs)


def none_finished(runs: Sequence[Run]) -> list[str]:
    """A line if no run is done."""
    if any(run.is_done for run in runs):
        return []
    return [f"no run has finished yet ({count_of(len(runs), 'run')})"]


def count_of(number: int, word: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {word}{'' if number == 1 else 's'}"
