"""The table as csv, json and parquet, unrounded, and as Markdown, LaTeX and HTML as printed. Imports no torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

from analysis.tables.cells import Column
from analysis.tables.rows import Row
from analysis.tables.table import NOTES, STATE, Table
from fovea_detr.errors import UserError
from fovea_detr.runs.files import write_atomic

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {letter: f"\\{letter}" for letter in "&%$#_{}"}
LATEX |= {"±": r"$\pm$", "Δ": r"$\Delta$", "<": r"$<$", ">": r"$>$"}
FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"  # only where it is wider than the column
DATA = (".csv", ".json", ".parquet")


def to_csv(table: Table) -> bytes:
    import pandas as pd  # only here: printing needs no pandas

    return pd.DataFrame(table.records()).to_csv(index=False, lineterminator="\n").encode()


def to_json(table: Table) -> bytes:
    """By the json module: pandas' writer stops at 15 decimals."""
    rows = [
        {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in record.items()}
        for record in table.records()
    ]
    content = {"unit": "metrics are fractions: 0.41 is AP 41.0", "rows": rows, "notes": table.warnings}
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def to_parquet(table: Table) -> bytes:
    try:
        import pyarrow  # noqa: F401 - pandas' own message has three lines
    except ImportError:
        raise UserError("parquet needs the package pyarrow: pip install 'fovea-detr[parquet]'") from None
    import pandas as pd

    return pd.DataFrame(table.records()).to_parquet(index=False)


def to_markdown(table: Table) -> bytes:
    lines = [_pipes([column.title for column in table.columns])]
    lines.append("|" + "|".join("---:" if column.is_number else "---" for column in table.columns) + "|")
    for row in table.rows:
        texts = {column: re.sub(r"([\\|*_`<\[])", r"\\\1", table.text(row, column)) for column in table.columns}
        lines.append(_pipes([f"**{text}**" if column.name in row.best else text for column, text in texts.items()]))
    below = [f"{number}. {note}" for number, note in enumerate(table.notes, 1)]
    below += [f"- {line}" for line in table.warnings]
    return ("\n".join([*lines, "", *below]).rstrip() + "\n").encode()


def _pipes(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def to_latex(table: Table) -> bytes:
    r"""A booktabs table for one column of a paper, unless --columns chooses: settings, metrics and differences.

    A difference is small and grey behind its metric. Rows without a finished run are left out, and named in a comment.
    """
    asked = table.columns is not table.every
    rows = [row for row in table.rows if asked or row.is_finished]
    columns = [column for column in table.columns if asked or _is_in_papers(column)]
    places = "".join("r" if column.is_number else "l" for column in columns)
    lines = [r"% \usepackage{booktabs,graphicx,xcolor}", FIT, rf"\begin{{tabular}}{{@{{}}{places}@{{}}}}", r"\toprule"]
    lines += [_ampersands([latex(column.title) for column in columns]), r"\midrule"]
    lines += [_ampersands([_latex_cell(table, row, column, grey=not asked) for column in columns]) for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}}"]
    used = [note for note in table.notes if any(note in row.notes for row in rows)]
    lines += [rf"% {number}: {note}" for number, note in enumerate(used, 1)]
    lines += [f"% left out, not finished: {row.label} ({row.state})" for row in table.rows if row not in rows]
    lines += [f"% {line}" for line in table.warnings]
    return ("\n".join(lines) + "\n").encode()


def _is_in_papers(column: Column) -> bool:
    if column.is_number:
        return column.is_metric or column.name.endswith("_published")
    return column not in (STATE, NOTES) and not column.name.endswith("_verdict")


def latex(text: str) -> str:
    escaped = "--" if text == "-" else "".join(LATEX.get(letter, letter) for letter in text)
    return re.sub(r"(^|(?<=\[)|(?<=, ))-(?=\d)", "$-$", escaped)  # a minus, not a hyphen


def _latex_cell(table: Table, row: Row, column: Column, *, grey: bool) -> str:
    text = latex(table.text(row, column))
    text = rf"\textbf{{{text}}}" if column.name in row.best else text
    beside = column.difference()
    if grey and column.is_metric and row.cells.get(beside.name) is not None and row is not table.baseline:
        short = table.text(row, beside).partition(" [")[0]
        text += rf" {{\scriptsize\color{{gray}}{latex(short)}}}"
    return text


def _ampersands(texts: list[str]) -> str:
    return f"{' & '.join(texts)} \\\\"


WRITERS: dict[str, Callable[[Table], bytes]] = {
    ".csv": to_csv,
    ".md": to_markdown,
    ".tex": to_latex,
    ".json": to_json,
    ".parquet": to_parquet,
}
PAGE = ".html"
FORMATS = (*WRITERS, PAGE)


def check_format(path: Path) -> None:
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--to {path}: the file name must end in one of {', '.join(FORMATS)}")
    if path.is_dir() or (path.parent.exists() and not path.parent.is_dir()):
        raise UserError(f"--to {path}: cannot create a file there")


def write(table: Table, path: Path, since: str | None = None) -> None:
    """Write the file atomically, in the format of its suffix. since: a date, for the page."""
    if path.suffix.lower() == PAGE:
        from analysis.output.report import page  # needs every history, unlike the other formats

        content = page(table, path, since).encode()
    else:
        content = WRITERS[path.suffix.lower()](table)
    write_atomic(path, lambda file: file.write(content))
