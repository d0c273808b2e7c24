"""A study on one page: a file of HTML that needs nothing else, for a phone as for a group meeting. No torch.

What it is about, the table, the curves, what did not finish, where the numbers come from, how to make them again.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from analysis.output.sections import commands, count_of, open_ends, provenance, results, row_name
from analysis.output.svg import COLOURS, chart, chosen, curve
from analysis.tables.rows import WORDS
from analysis.tables.table import Table
from fovea_detr.config.schema import CONF_DIR

PARTS = Path(__file__).parent
SWEEPS = CONF_DIR / "sweeps"


def page(table: Table) -> str:
    studies = list(dict.fromkeys(run.study for run in table.runs))
    counts = Counter(run.standing.word for run in table.runs)
    state = ", ".join(f"{counts[word]} {word}" for word in WORDS if word in counts)
    rows, runs = (count_of(len(items), word) for items, word in ((table.rows, "row"), (table.runs, "run")))
    sections = [question(studies), results(table), curves(table), open_ends(table), provenance(table), commands(table)]
    return Template((PARTS / "page.html").read_text()).substitute(
        title=escape(", ".join(studies)),
        style=(PARTS / "style.css").read_text().strip(),
        summary=escape(f"{rows} of {runs}: {state}"),
        sections="\n".join(part for part in sections if part),
        footer=f"Written {time.strftime('%Y-%m-%d %H:%M')} by analysis/collect.py from the run folders alone.",
        script=(PARTS / "sort.js").read_text().strip(),
    )


def question(studies: Sequence[str]) -> str:
    """What the header of sweeps/STUDY.yaml says, for those that have one."""
    blocks = []
    for study in studies:
        lines = [f"<p><b>{escape(key)}</b> {escape(text)}</p>" for key, text in header(study).items()]
        asked = header(study).get("Question")
        if asked:
            lines[0] = f'<p class="asked">{escape(asked)}</p>'
        name = f'<p class="quiet">{escape(study)}</p>' if lines and len(studies) > 1 else ""
        blocks.append(f'<div class="question">{name}{"".join(lines)}</div>' if lines else "")
    return "\n".join(blocks)


def header(study: str) -> dict[str, str]:
    """`# Question: ...` and so on, at the top of the study's yaml; a line of spaces goes on with the one above."""
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
    metric = next((column.name for column in table.columns if column.best), "AP")
    rows = chosen(table.rows, metric)
    drawn = [(row_name(table, row), row.counted) for row in rows]
    figures = [
        chart(title, [curve(name, runs, key, style) for style, (name, runs) in enumerate(drawn)])
        for title, key in ((metric, metric), ("loss", "loss"))
    ]
    if not any(figures):
        return ""
    limit = f" Drawn are the {COLOURS} best of {len(table.rows)} rows." if len(rows) == COLOURS else ""
    said = f'<p class="quiet">The mean over seeds; the band is one standard deviation to each side.{limit}</p>'
    return f'<section><h2>Curves</h2>{said}<div class="charts">{"".join(figures)}</div></section>'
