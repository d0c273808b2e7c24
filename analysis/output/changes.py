"""What changed in a study since a date, or since the page that is there. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from analysis.tables.table import Table
from fovea_detr.errors import UserError

STATE = re.compile(r'<script type="application/json" id="state">(.*?)</script>', re.DOTALL)


def state_of(table: Table) -> dict[str, Any]:
    """What the next page compares itself with, as printed."""
    shown = [column for column in table.every if column.is_metric]
    rows = {row.label: {c.title: table.text(row, c) for c in shown} | {"state": row.state} for row in table.rows}
    return {"written": datetime.now().isoformat(" ", "minutes"), "rows": rows}


def changes_since(table: Table, path: Path, since: str | None) -> tuple[str, list[str] | None]:
    """-> since when, and a line per change; None if there is nothing to compare with. Raises UserError for no date."""
    if since is not None:
        try:
            begin = datetime.fromisoformat(since)
        except ValueError:
            raise UserError(f"--since {since}: write a date as 2026-11-20, or 2026-11-20T09:00") from None
        runs = [run for run in table.runs if run.time >= begin.timestamp()]
        return since, [f"{run.study}/{run.path.name}: {run.state}" for run in sorted(runs, key=lambda run: run.time)]
    found = STATE.search(path.read_text(errors="replace")) if path.is_file() else None
    try:
        before = json.loads(found[1]) if found else None
        return (before["written"], list(_lines(before["rows"], state_of(table)["rows"]))) if before else ("", None)
    except (ValueError, KeyError, TypeError, AttributeError):  # a page of another version
        return "", None


def _lines(before: dict[str, dict[str, str]], now: dict[str, dict[str, str]]) -> Iterator[str]:
    for label, cells in now.items():
        old = before.get(label)
        if old is None:
            yield f"{label}: new, {', '.join(f'{name} {text}' for name, text in cells.items())}"
            continue
        told = [f"{name} {old[name]} → {text}" for name, text in cells.items() if old.get(name, text) != text]
        if told:
            yield f"{label}: {'; '.join(told)}"
    yield from (f"{label}: not in the table any more" for label in before.keys() - now.keys())
