"""The table as csv, json and parquet, unrounded, and as Markdown, LaTeX and HTML as printed. Imports no torch."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from analysis.tables.cells import NOTES, STATE, Column
from analysis.tables.rows import Row
from analysis.tables.table import Table
from fovea_detr.errors import UserError
from fovea_detr.runs.files import write_atomic

NUMBER = r"[+-]?\d+(\.\d+)?( ± \d+(\.\d+)?)?"
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {letter: f"\\{letter}" for letter in "&%$#_{}"}
LATEX |= {"±": r"$\pm$", "Δ": r"$\Delta$", "<": r"$<$", ">": r"$>$"}
SIUNITX = r"\usepackage[separate-uncertainty,retain-explicit-plus]{siunitx}"
FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"  # only where it is wider than the column
DATA = (".csv", ".json", ".parquet")


def to_csv(table: Table) -> bytes:
    return table.frame().to_csv(index=False, lineterminator="\n").encode()


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
    return table.frame().to_parquet(index=False)


def to_markdown(table: Table) -> bytes:
    marks = ["---:" if column.is_number else "---" for column in table.columns]
    lines = [[column.title for column in table.columns], marks]
    for row in table.rows:
        texts = [re.sub(r"([\\|*_`<\[])", r"\\\1", table.text(row, column)) for column in table.columns]
        bold = [column.name in row.best for column in table.columns]
        lines.append([f"**{text}**" if is_best else text for text, is_best in zip(texts, bold, strict=True)])
    below = [*(f"{number}. {note}" for number, note in enumerate(table.notes, 1)), *(f"- {w}" for w in table.warnings)]
    return ("\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *below]).rstrip() + "\n").encode()


def to_latex(table: Table, *, siunitx: bool = False) -> bytes:
    r"""A booktabs table for one column of a paper, unless --columns chooses: settings, metrics and differences.

    A difference is small and grey behind its metric. Rows without a finished run are left out, and named in a comment.
    siunitx: numbers as \num{41.0 +- 0.3}.
    """
    asked = table.columns is not table.every
    rows = [row for row in table.rows if asked or row.is_finished]
    columns = [column for column in table.columns if asked or _is_in_papers(column)]
    places = "".join("r" if column.is_number else "l" for column in columns)
    packages = r"% \usepackage{booktabs,graphicx,xcolor}" + SIUNITX * siunitx
    lines = [packages, FIT, rf"\begin{{tabular}}{{@{{}}{places}@{{}}}}", r"\toprule"]
    cells = [[_latex_cell(table, row, column, not asked, siunitx) for column in columns] for row in rows]
    heads, *others = [f"{' & '.join(line)} \\\\" for line in ([latex(column.title) for column in columns], *cells)]
    lines += [heads, r"\midrule", *others, r"\bottomrule", r"\end{tabular}}"]
    used = [note for note in table.notes if any(note in row.notes for row in rows)]
    lines += [rf"% {number}: {note}" for number, note in enumerate(used, 1)]
    lines += [f"% left out, not finished: {row.label} ({row.state})" for row in table.rows if row not in rows]
    return ("\n".join([*lines, *(f"% {line}" for line in table.warnings)]) + "\n").encode()


def _is_in_papers(column: Column) -> bool:
    if column.is_number:
        return column.is_metric or column.name.endswith("_published")
    return column not in (STATE, NOTES) and not column.name.endswith("_verdict")


def latex(text: str, siunitx: bool = False) -> str:
    if siunitx:
        return re.sub(NUMBER, lambda found: rf"\num{{{found[0].replace('±', '+-')}}}", text)
    escaped = "--" if text == "-" else "".join(LATEX.get(letter, letter) for letter in text)
    return re.sub(r"(^|(?<=\[)|(?<=, ))-(?=\d)", "$-$", escaped)  # a minus, not a hyphen


def _latex_cell(table: Table, row: Row, column: Column, grey: bool, siunitx: bool) -> str:
    text = latex(table.text(row, column), siunitx and column.is_number)
    text = rf"\textbf{{{text}}}" if column.name in row.best else text
    beside = column.difference()
    if grey and column.is_metric and row.cells.get(beside.name) is not None and row is not table.baseline:
        short = latex(table.text(row, beside).partition(" [")[0], siunitx)
        text += rf" {{\scriptsize\color{{gray}}{short}}}"
    return text


WRITERS = {".csv": to_csv, ".md": to_markdown, ".tex": to_latex, ".json": to_json, ".parquet": to_parquet}
PAGE = ".html"
FORMATS = (*WRITERS, PAGE)


def check_format(path: Path) -> None:
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--to {path}: the file name must end in one of {', '.join(FORMATS)}")
    if path.is_dir() or (path.parent.exists() and not path.parent.is_dir()):
        raise UserError(f"--to {path}: cannot create a file there")


def write(table: Table, path: Path, since: str | None = None, *, siunitx: bool = False) -> None:
    """Write the file atomically, in the format of its suffix. since: a date, for the page; siunitx: for .tex."""
    suffix = path.suffix.lower()
    if suffix == PAGE:
        from analysis.output.report import page  # needs every history, unlike the other formats

        content = page(table, path, since).encode()
    else:
        content = to_latex(table, siunitx=siunitx) if suffix == ".tex" else WRITERS[suffix](table)
    try:
        write_atomic(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"--to {path}: cannot be written ({error.strerror})") from error
