"""Text sections of the HTML page: results, unfinished runs, provenance, commands. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from html import escape

from analysis.output.commands import command
from analysis.output.svg import COLOURS
from analysis.output.terminal import count_of, none_finished
from analysis.reading.outcome import node_of
from analysis.reading.runs import Run
from analysis.tables.cells import Column, Value
from analysis.tables.rows import Row
from analysis.tables.table import NOTES, RUN, STATE, Table


def results(table: Table) -> str:
    heads = "".join(_head(column) for column in table.columns)
    rows = "\n".join(f"<tr>{''.join(_cell(table, row, c) for c in table.columns)}</tr>" for row in table.rows)
    notes = "".join(f'<li id="note-{i}">{escape(note)}</li>' for i, note in enumerate(table.notes, 1))
    warnings = "".join(f"<li>{escape(line)}</li>" for line in [*table.warnings, *none_finished(table.runs)])
    return (
        '<section><h2>Results</h2><p class="quiet">Metrics of the last evaluation. ± is the sample standard deviation '
        "over n seeds; the best finished row is bold. Click a heading to sort.</p>"
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
    """The varying settings: `dynamic_scale=type3, smooth=8`."""
    columns = [column for column in table.columns if column not in (STATE, NOTES) and not column.is_number]
    if not any(row.cells.get(column.name) for column in columns):
        return row.name
    if columns[-1] is RUN:
        return ", ".join(table.text(row, column) for column in columns)
    return ", ".join(f"{column.title}={table.text(row, column)}" for column in columns)


def unfinished_runs(table: Table) -> str:
    """Every run that is not done or has unreadable files, with the reason."""
    lines = []
    for run in table.runs:
        texts = [*([] if run.is_done else [run.state]), *run.problems]
        if texts:
            lines.append(f"<li><b>{escape(f'{run.study}/{run.path.name}')}</b><br>{escape('; '.join(texts))}</li>")
    body = f"<ul>{''.join(lines)}</ul>" if lines else "<p>All runs have finished and all files are readable.</p>"
    return f"<section><h2>Unfinished runs and problems</h2>{body}</section>"


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
    caption = '<p class="quiet">The origin of the numbers; values that differ between runs are in colour.</p>'
    body = f'<div class="wide"><table class="provenance"><tbody>{"".join(lines)}</tbody></table></div>'
    return f"<section><h2>Provenance</h2>{caption}{body}</section>"


def facts_of(run: Run) -> Iterator[tuple[str, str]]:
    yield from run.facts.items()
    for name in ("device", "world_size", "python"):
        if name in run.provenance:
            yield name.replace("_", " "), str(run.provenance[name])
    for split, flaws in node_of(run.provenance.get("data_flaws")).items():
        if flaws:
            yield f"flaws of {split}", "; ".join(f"{flaw['count']} {flaw['kind']}: {flaw['fate']}" for flaw in flaws)
    packages = run.provenance.get("packages")
    yield from ((name, str(version)) for name, version in packages.items()) if isinstance(packages, dict) else ()


def commands(table: Table) -> str:
    blocks = []
    for row in table.rows:
        lines = list(dict.fromkeys(line for run in row.runs if (line := command(run))))
        codes = sorted({run.facts["code"] for run in row.runs if "code" in run.facts})
        comments = [f"# code {', '.join(codes)}"] if codes else []
        text = escape("\n".join([*comments, *lines]))
        body = f"<pre>{text}</pre>" if lines else "<p>not recorded in the run folders</p>"
        is_open = " open" if len(table.rows) <= COLOURS else ""
        blocks.append(f"<details{is_open}><summary>{escape(row_name(table, row))}</summary>{body}</details>")
    return f"<section><h2>Commands to reproduce each row</h2>{''.join(blocks)}</section>"
