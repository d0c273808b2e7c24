"""A study as one self-contained HTML page, for phones and large screens. Imports no torch.

The study's question, the table, curves, unfinished runs, provenance, and the commands to reproduce each row.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from analysis.output.sections import commands, provenance, results, row_name, unfinished_runs
from analysis.output.svg import COLOURS, best_rows, chart, curve
from analysis.output.terminal import count_of
from analysis.tables.rows import count_states
from analysis.tables.table import Table
from fovea_detr.config.schema import CONF_DIR

PARTS = Path(__file__).parent
SWEEPS = CONF_DIR / "sweeps"


def page(table: Table) -> str:
    studies = list(dict.fromkeys(run.study for run in table.runs))
    rows, runs = (count_of(len(items), word) for items, word in ((table.rows, "row"), (table.runs, "run")))
    sections = [questions(studies)]
    sections += [section(table) for section in (results, curves, unfinished_runs, provenance, commands)]
    return Template((PARTS / "page.html").read_text()).substitute(
        title=escape(", ".join(studies)),
        style=(PARTS / "style.css").read_text().strip(),
        summary=escape(f"{rows} of {runs}: {count_states(table.runs)}"),
        sections="\n".join(part for part in sections if part),
        footer=f"Written {time.strftime('%Y-%m-%d %H:%M')} by analysis/collect.py from the run folders.",
        script=(PARTS / "sort.js").read_text().strip(),
    )


def questions(studies: Sequence[str]) -> str:
    """The header comments of each study's sweeps/STUDY.yaml, if there is one."""
    blocks = []
    for study in studies:
        texts = header(study)
        lines = [f"<p><b>{escape(key)}</b> {escape(text)}</p>" for key, text in texts.items()]
        if "Question" in texts:
            lines[0] = f'<p class="asked">{escape(texts["Question"])}</p>'
        name = f'<p class="quiet">{escape(study)}</p>' if lines and len(studies) > 1 else ""
        blocks.append(f'<div class="question">{name}{"".join(lines)}</div>' if lines else "")
    return "\n".join(blocks)


def header(study: str) -> dict[str, str]:
    """`# Question: ...` and other keys at the top of the study's yaml; an indented line continues the one above."""
    path, found, key = SWEEPS / f"{study}.yaml", {}, None
    for line in path.read_text().splitlines() if path.is_file() else []:
        match = re.fullmatch(r"#\s*(\w+):\s+(.*)", line)
        if match:
            key = match[1]
            found[key] = match[2]
        elif key and line.startswith("#  "):
            found[key] += f" {line[1:].strip()}"
        elif not line.startswith("#"):
            break
    return found


def curves(table: Table) -> str:
    metric = next((column.name for column in table.columns if column.is_metric), "AP")
    rows = best_rows(table.rows, metric)
    drawn = [(row_name(table, row), row.counted) for row in rows]
    figures = [
        chart(title, [curve(name, runs, key, style) for style, (name, runs) in enumerate(drawn)])
        for title, key in ((metric, metric), ("loss", "loss"))
    ]
    if not any(figures):
        return ""
    limit = f" Only the best {COLOURS} of {len(table.rows)} rows are drawn." if len(rows) == COLOURS else ""
    caption = f'<p class="quiet">Mean over seeds; the band is ± one standard deviation.{limit}</p>'
    return f'<section><h2>Curves</h2>{caption}<div class="charts">{"".join(figures)}</div></section>'
