"""A study as one self-contained HTML page, for phones, large screens and paper. Imports no torch.

The study's question, what changed, the table, curves, unfinished runs, provenance, commands and files of each row.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from analysis.output import charts
from analysis.output.changes import changes_since, state_of
from analysis.output.commands import command
from analysis.output.pictures import pictures
from analysis.output.terminal import count_of, none_finished
from analysis.reading.outcome import node_of
from analysis.reading.runs import Run
from analysis.tables.cells import BEST, NOTES, STATE, Column, N
from analysis.tables.frames import epochs_frame
from analysis.tables.rows import Row, count_states, ranked
from analysis.tables.table import Table
from analysis.tables.verdicts import why
from fovea_detr.config.schema import CONF_DIR
from fovea_detr.runs.state import number

PARTS = Path(__file__).parent
SWEEPS = CONF_DIR / "sweeps"
NAME = Column("row", "row")
CAPTION = (
    "Metrics of the last evaluation, AP in per cent; ± is the sample standard deviation over n seeds, [ ] the 95 % "
    "interval of a difference, left out where it is wider than 100 AP. Bold: the best of the rows with two seeds or "
    "more, and all that are not resolved from it. Click a heading to sort."
)
SAMPLES = ("samples/*.jpg", "samples/*.png", "predictions.json")


def page(table: Table, path: Path, since: str | None = None) -> str:
    """The page that is to be written to `path`. since: a date; None: since the page that is there.

    Raises UserError for a date that is none.
    """
    studies = list(dict.fromkeys(run.study for run in table.runs))
    rows, runs = (count_of(len(items), word) for items, word in ((table.rows, "row"), (table.runs, "run")))
    template = Environment(loader=FileSystemLoader(PARTS), autoescape=True, trim_blocks=True).get_template("page.html")
    when, changes = changes_since(table, path, since)
    best_first = ranked(table.rows, table.first_metric)
    return template.render(
        title=", ".join(studies),
        style=(PARTS / "page.css").read_text().strip(),
        script=(PARTS / "page.js").read_text().strip(),
        summary=f"{rows} of {runs}: {count_states(table.runs)}",
        questions={study: texts for study in studies if (texts := header(study))},
        since=when,
        changes=changes,
        caption=CAPTION,
        table=table,
        columns=columns_of(table),
        again=[(row.label, again(row, path)) for row in table.rows],
        order=[row.label for row in best_first],
        pictures=pictures(best_first),
        warnings=[*table.warnings, *none_finished(table.runs)],
        why=list(why(table.every, table.verdicts)),
        charts=charts.charts(table, epochs_frame(table.rows, [])),
        bars=list(charts.bars(table)),
        unfinished=list(unfinished(table)),
        provenance=provenance(table),
        written=time.strftime("%Y-%m-%d %H:%M"),
        state=state_of(table),
    ).lstrip()


def header(study: str) -> dict[str, str]:
    """`# Question: ...` and other keys at the top of sweeps/STUDY.yaml; an indented line continues the one above."""
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


def columns_of(table: Table) -> list[Column]:
    """The row's name, metrics, n, state and notes first: they fit a phone; then settings and cost."""
    if table.columns is not table.every:
        return [NAME, *table.columns]
    names = [column.name for column in table.columns]
    scores = table.columns[names.index(table.first_metric) : names.index(BEST)]
    head = [*scores, *(column for column in (N, STATE, NOTES) if column in table.columns)]
    return [NAME, *head, *(column for column in table.columns if column not in head)]


def again(row: Row, page_path: Path) -> dict[str, Any]:
    """The commands that make a row again, and links to the files of its runs."""
    lines = list(dict.fromkeys(line for run in row.runs if (line := command(run))))
    codes = sorted({run.facts["code"] for run in row.runs if "code" in run.facts})
    links = [
        (f"{run.path.name}{'' if file == run.path else f' {file.name}'}", os.path.relpath(file, page_path.parent))
        for run in row.runs
        for file in (run.path, *(found for pattern in SAMPLES for found in sorted(run.path.glob(pattern))))
    ]
    ranks = sorted({number(run.provenance.get("world_size")) for run in row.runs} - {1.0})
    comments = [f"# code {code}" for code in codes]
    comments += [f"# {n:.0f} processes: torchrun --nproc_per_node={n:.0f} in place of python" for n in ranks if n > 1]
    return {"commands": [*comments, *lines] if lines else [], "links": links}


def unfinished(table: Table) -> Iterator[tuple[str, str]]:
    """Every run that is not done or has unreadable files, with the reason."""
    for run in table.runs:
        texts = [*([] if run.is_done else [run.state]), *run.problems]
        if texts:
            yield f"{run.study}/{run.path.name}", "; ".join(texts)


def provenance(table: Table) -> dict[str, list[tuple[str, str]]]:
    """The values of each fact, the most frequent first, with the number of runs."""
    counts = Counter(fact for run in table.runs for fact in facts_of(run))
    found: dict[str, list[tuple[str, str]]] = {name: [] for name, _ in counts}
    for (name, value), count in counts.most_common():
        found[name].append((value, count_of(count, "run")))
    return found


def facts_of(run: Run) -> Iterator[tuple[str, str]]:
    yield from run.facts.items()
    yield from (("resumed with another", change) for change in run.changes)
    if "python" in run.provenance:
        yield "python", str(run.provenance["python"])
    for split, flaws in node_of(run.provenance.get("data_flaws")).items():
        if flaws:
            yield f"flaws of {split}", "; ".join(f"{flaw['count']} {flaw['kind']}: {flaw['fate']}" for flaw in flaws)
    yield from ((name, str(version)) for name, version in node_of(run.provenance.get("packages")).items())
