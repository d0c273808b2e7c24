"""The table on a terminal: as wide as it is, and below it everything that a reader must know. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from analysis.reading.runs import Run
from analysis.tables.cells import Column
from analysis.tables.table import Table
from fovea_detr.runs.state import BROKEN, FOREIGN

NARROWEST = 7  # characters that a text keeps in the narrowest terminal; numbers are never cut
GAP = "  "


def render(table: Table, width: int) -> str:
    """First the widest texts are cut, then the columns that matter least leave, and a line says which."""
    lines = {column: [column.title, *(table.text(row, column) for row in table.rows)] for column in table.columns}
    widths = {column: max(map(len, texts)) for column, texts in lines.items()}
    left_out = []
    while _total(widths, cut=True) > width and any(column.room for column in widths):
        left_out.append(max(reversed(widths), key=lambda column: column.room))
        del widths[left_out[-1]]
    while _total(widths) > width and (wide := [c for c in widths if not c.is_number and widths[c] > NARROWEST]):
        widths[max(wide, key=lambda column: widths[column])] -= 1
    texts = [[_fit(lines[column][i], column, w) for column, w in widths.items()] for i in range(len(table.rows) + 1)]
    text = "\n".join(GAP.join(cells).rstrip() for cells in texts)
    if left_out:
        names = ", ".join(column.title for column in table.columns if column in left_out)
        text += f"\nleft out, for the width of this terminal: {names}"
    return text


def _total(widths: dict[Column, int], cut: bool = False) -> int:
    """Of a line; cut: if every text were as short as it may get."""
    used = [w if column.is_number or not cut else min(w, 2 * NARROWEST) for column, w in widths.items()]
    return sum(used) + len(GAP) * (len(used) - 1)


def _fit(text: str, column: Column, width: int) -> str:
    if len(text) > width:
        text = text[: width - 1] + "…"
    return text.rjust(width) if column.is_number else text.ljust(width)


def below(table: Table, text: str) -> Iterator[str]:
    """Notes of rows, what the rest of the runs suffer from, and what the table had no room for."""
    yield from (f"{number}: {note}" for number, note in enumerate(table.notes, 1))
    yield from table.lines
    shown = {state for state in {row.state for row in table.rows} if state in text}
    for run in table.runs:
        yield from (f"{run.path}: {line}" for line in remarks(run, run.state in shown))
    yield from unfinished(table.runs)


def remarks(run: Run, state_is_shown: bool) -> list[str]:
    """What is wrong with a run, or not over yet."""
    says_more = run.standing.word not in (BROKEN, FOREIGN, "done")
    return ([run.state] if says_more and not state_is_shown else []) + run.problems


def unfinished(runs: Sequence[Run]) -> list[str]:
    if any(run.is_done for run in runs):
        return []
    return [f"nothing has finished yet ({len(runs)} run{'s' if len(runs) != 1 else ''})"]
