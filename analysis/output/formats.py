"""The table as csv, json, parquet, Markdown, LaTeX and HTML, all with the digits of cells.py. Imports no torch."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

from analysis.tables.cells import data_texts
from analysis.tables.table import STATE, Table
from fovea_detr.errors import UserError
from fovea_detr.runs.files import write_atomic

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {letter: f"\\{letter}" for letter in "&%$#_{}"}
LATEX |= {"±": r"$\pm$", "Δ": r"$\Delta$", "<": r"$<$", ">": r"$>$"}


def to_csv(table: Table) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.data_names())
    for row in table.rows:
        writer.writerow(text or "" for column, cell in table.data_cells(row) for text in data_texts(column, cell))
    return text.getvalue().encode()


def to_json(table: Table) -> bytes:
    content = {"rows": list(table.records()), "notes": table.warnings}
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def to_parquet(table: Table) -> bytes:
    try:
        import pyarrow  # noqa: F401 - pandas' own message has three lines
    except ImportError:
        raise UserError("parquet needs the package pyarrow: pip install 'fovea-detr[parquet]'") from None
    content = io.BytesIO()
    table.frame().to_parquet(content, index=False)
    return content.getvalue()


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
    """A booktabs tabular. The state column is omitted if all runs are done."""
    all_done = all(run.is_done for run in table.runs)
    columns = [column for column in table.columns if not (all_done and column is STATE)]
    places = "".join("r" if column.is_number else "l" for column in columns)
    lines = [r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{{places}}}", r"\toprule"]
    lines += [_ampersands([latex(column.title) for column in columns]), r"\midrule"]
    for row in table.rows:
        lines.append(_ampersands([_latex_cell(latex(table.text(row, c)), c.name in row.best) for c in columns]))
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {number}: {latex(note)}" for number, note in enumerate(table.notes, 1)]
    lines += [f"% {line}" for line in table.warnings]
    return ("\n".join(lines) + "\n").encode()


def latex(text: str) -> str:
    escaped = "--" if text == "-" else "".join(LATEX.get(letter, letter) for letter in text)
    return re.sub(r"^-(?=\d)", "$-$", escaped)  # a minus, not a hyphen


def _latex_cell(text: str, is_best: bool) -> str:
    return rf"\textbf{{{text}}}" if is_best else text


def _ampersands(texts: list[str]) -> str:
    return f"{' & '.join(texts)} \\\\"


def to_html(table: Table) -> bytes:
    from analysis.output.report import page  # needs every history, unlike the other formats

    return page(table).encode()


FORMATS: dict[str, Callable[[Table], bytes]] = {
    ".csv": to_csv,
    ".md": to_markdown,
    ".tex": to_latex,
    ".html": to_html,
    ".json": to_json,
    ".parquet": to_parquet,
}


def check_format(path: Path) -> None:
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--to {path}: the file name must end in one of {', '.join(FORMATS)}")
    if path.is_dir() or (path.parent.exists() and not path.parent.is_dir()):
        raise UserError(f"--to {path}: cannot create a file there")


def write(table: Table, path: Path) -> None:
    """Write the file atomically, in the format of its suffix."""
    content = FORMATS[path.suffix.lower()](table)
    write_atomic(path, lambda file: file.write(content))
