"""The parts of the page that are text and tables: results, what did not finish, provenance, commands. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from html import escape

from analysis.output.commands import command
from analysis.output.svg import COLOURS
from analysis.output.terminal import unfinished
from analysis.reading.runs import Run
from analysis.tables.cells import Column, Value
from analysis.tables.rows import Row
from analysis.tables.table import NOTES, RUN, STATE, Table


def count_of(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def results(table: Table) -> str:
    heads = "".join(_head(column) for column in table.columns)
    rows = "\n".join(f"<tr>{''.join(_cell(table, row, c) for c in table.columns)}</tr>" for row in table.rows)
    notes = "".join(f'<li id="note-{i}">{escape(note)}</li>' for i, note in enumerate(table.notes, 1))
    warnings = "".join(f"<li>{escape(line)}</li>" for line in [*table.lines, *unfinished(table.runs)])
    return (
        '<section><h2>Results</h2><p class="quiet">Of the last evaluation. ± is the sample standard deviation over the '
        "n seeds; the best of those that finished is bold. A heading sorts.</p>"
        f'<div class="wide"><table class="sortable"><thead><tr>{heads}</tr></thead>'
        f"<tbody>\n{rows}\n</tbody></table>"
        "</div>"
        f"{f'<ol>{notes}</ol>' if notes else ''}{f'<ul>{warnings}</ul>' if warnings else ''}</section>"
    )


def _head(column: Column) -> str:
    first = ' data-first="descending"' if column.spread or column.signed else ""
    kind = "number" if column.is_number else "text"
    return f'<th scope="col" class="{kind}"{first}><button type="button">{escape(column.title)}</button></th>'


def _cell(table: Table, row: Row, column: Column) -> str:
    text, cell = escape(table.text(row, column)), row.cells.get(column.name)
    value = f"{cell.mean:.12g}" if isinstance(cell, Value) else text if column is NOTES else escape(cell or "")
    if column is NOTES:
        text = " ".join(f'<a href="#note-{number}">{number}</a>' for number in text.split())
    kinds = ["number"] * column.is_number + ["best"] * (column.name in row.best) + ["state"] * (column is STATE)
    kinds += ["long"] * (column is STATE and len(text) > 15)
    return f'<td class="{" ".join(kinds)}" data-value="{value}">{text}</td>'


def row_name(table: Table, row: Row) -> str:
    """By what varies: `dynamic_scale=type3, smooth=8`."""
    columns = [column for column in table.columns if column not in (STATE, NOTES) and not column.is_number]
    if not any(row.cells.get(column.name) for column in columns):
        return row.name
    if columns[-1] is RUN:
        return ", ".join(table.text(row, column) for column in columns)
    return ", ".join(f"{column.title}={table.text(row, column)}" for column in columns)


def open_ends(table: Table) -> str:
    """Every run that did not finish or left something unreadable, with its reason."""
    lines = []
    for run in table.runs:
        texts = [*([] if run.is_done else [run.state]), *run.problems]
        if texts:
            lines.append(f"<li><b>{escape(f'{run.study}/{run.path.name}')}</b><br>{escape('; '.join(texts))}</li>")
    body = f"<ul>{''.join(lines)}</ul>" if lines else "<p>Every run has finished, and every file could be read.</p>"
    return f"<section><h2>What did not finish</h2>{body}</section>"


def provenance(table: Table) -> str:
    facts: dict[str, Counter[str]] = {}
    for run in table.runs:
        for name, value in facts_of(run):
            facts.setdefault(name, Counter())[value] += 1
    lines = []
    for name, values in facts.items():
        several = len(values) > 1
        counted = [(escape(value), count_of(count, "run")) for value, count in values.most_common()]
        texts = [f"{value} ({count})" if several else value for value, count in counted]
        lines.append(
            f"<tr><td>{escape(name)}</td><td{' class=differs' if several else ''}>{'<br>'.join(texts)}</td></tr>"
        )
    if not lines:
        return ""
    said = '<p class="quiet">What the numbers came from; in colour where it is not the same for all runs.</p>'
    body = f'<div class="wide"><table class="provenance"><tbody>{"".join(lines)}</tbody></table></div>'
    return f"<section><h2>Provenance</h2>{said}{body}</section>"


def facts_of(run: Run) -> Iterator[tuple[str, str]]:
    yield from run.facts.items()
    for name in ("device", "world_size", "python"):
        if name in run.provenance:
            yield name.replace("_", " "), str(run.provenance[name])
    packages = run.provenance.get("packages")
    yield from ((name, str(version)) for name, version in packages.items()) if isinstance(packages, dict) else ()


def commands(table: Table) -> str:
    blocks = []
    for row in table.rows:
        lines = list(dict.fromkeys(line for run in row.runs if (line := command(run))))
        codes = sorted({run.facts["code"] for run in row.runs if "code" in run.facts})
        said = f"# code {', '.join(codes)}\n" if codes else ""
        body = f"<pre>{escape(said + chr(10).join(lines))}</pre>" if lines else "<p>not told by the folders</p>"
        is_open = " open" if len(table.rows) <= COLOURS else ""
        blocks.append(f"<details{is_open}><summary>{escape(row_name(table, row))}</summary>{body}</details>")
    return f"<section><h2>To make a row again</h2>{''.join(blocks)}</section>"
