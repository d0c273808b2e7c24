"""The table of an ablation: a row for each run folder, a column for whatever the runs differ in.

    python analysis/collect.py [STUDY ...] [--runs runs]

Reads run folders and nothing else, at any time, and never imports torch: it is quick on a login node while jobs run.
AP is that of the last evaluation, not of the best one.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script has its own folder there, not `analysis`

from analysis.folders import Run, find_runs, overrides
from fovea_detr.errors import UserError

NUMBERS = {"AP": "{:.3f}", "AP50": "{:.3f}", "epochs": "{:.0f}", "minutes": "{:.1f}"}
RESERVED = {"study", "state", *NUMBERS}
NARROWEST = 7  # characters a column keeps in the narrowest terminal, so that no number is ever cut
GAP = "  "


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The table of an ablation, from its run folders.")
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="folders of RUNS; all of them if none is named")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of all studies (default: runs)")
    options = parser.parse_args(arguments)
    try:
        runs = find_runs(options.runs, options.studies)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = render(make_table(runs), shutil.get_terminal_size((120, 24)).columns)
    print(text)
    for line in notes(runs, text):
        print(line)
    return 0


def make_table(runs: Sequence[Run]) -> pd.DataFrame:
    """A row a run, sorted by study and settings: study (if several), what varies, state, numbers."""
    settings = pd.DataFrame([run.settings for run in runs], dtype=object)
    keys = varying_keys(settings, runs)
    columns = {"study": [run.path.parent.name for run in runs]}
    columns |= {short_name(key, set(settings)): settings[key].tolist() for key in keys}
    if not keys:
        columns["run"] = [run.path.name for run in runs]
    order = sorted(range(len(runs)), key=lambda i: [_natural(column[i]) for column in columns.values()])
    columns |= {"state": [run.state for run in runs]}
    columns |= {name: [run.numbers[name] for run in runs] for name in NUMBERS}
    table = pd.DataFrame(columns).iloc[order].reset_index(drop=True)
    return table if table["study"].nunique() > 1 else table.drop(columns="study")


def varying_keys(settings: pd.DataFrame, runs: Sequence[Run]) -> list[str]:
    """The settings that differ between runs and are not explained by another one that is shown.

    A setting inside a group (`model.heads`) is explained if the group's name alone tells its value, and one that only
    follows another (`evaluation.batch_size`, copied from the schedule's) if that one is explained or was set by hand.
    What was set by hand is always shown, and so is a setting of another group that happens to vary in step: that is a
    confounded comparison, which the reader must see. A setting that a run does not know counts as no value.
    """
    by_hand = {key for run in runs for key in overrides(run.path)}
    counts = settings.nunique()
    varying = [key for key in map(str, settings) if counts[key] > 1]

    def by_group(key: str) -> bool:
        groups = [group for group in varying if key.startswith(f"{group}.")]
        return any(len(settings[[group, key]].dropna().drop_duplicates()) <= counts[group] for group in groups)

    def follows_another(key: str) -> bool:
        twins = [twin for twin in varying if twin != key and twin.split(".")[-1] == key.split(".")[-1]]
        same = [twin for twin in twins if settings.loc[:, twin].equals(settings.loc[:, key])]
        return any(twin in by_hand or by_group(twin) for twin in same)

    shown = [key for key in varying if key in by_hand or not (by_group(key) or follows_another(key))]
    groups = {key.partition(".")[0] for key in map(str, settings) if "." in key}
    return sorted(shown, key=lambda key: key.partition(".")[0] not in groups)  # seed and the like come last


def short_name(key: str, keys: set[str]) -> str:
    """The last words of a key that no other key or node ends in: `fovea.smooth` -> `smooth`."""
    nodes = {".".join(words[:end]) for words in (key.split(".") for key in keys) for end in range(1, len(words) + 1)}
    words = key.split(".")
    for start in range(len(words) - 1, 0, -1):
        name = ".".join(words[start:])
        if name not in RESERVED and not any(f".{node}".endswith(f".{name}") for node in nodes - {key}):
            return name
    return key


def render(table: pd.DataFrame, width: int) -> str:
    """Plain text: numbers to the right; the widest columns are cut until a line fits the width."""
    cells = pd.DataFrame({name: [name, *(_cell(name, value) for value in table[name])] for name in table})
    widths = {name: int(cells[name].str.len().max()) for name in cells}
    while sum(widths.values()) + len(GAP) * (len(widths) - 1) > width and max(widths.values()) > NARROWEST:
        widths[max(widths, key=lambda name: widths[name])] -= 1
    rows = ([_fit(text, widths[name], name in NUMBERS) for name, text in row.items()] for _, row in cells.iterrows())
    return "\n".join(GAP.join(row).rstrip() for row in rows)


def _cell(name: str, value: object) -> str:
    if isinstance(value, float) and math.isnan(value):
        return "-"
    return NUMBERS[name].format(value) if name in NUMBERS else str(value)


def _fit(text: str, width: int, is_number: bool) -> str:
    if len(text) > width:
        text = text[: width - 1] + "…"
    return text.rjust(width) if is_number else text.ljust(width)


def _natural(cell: object) -> list[tuple[float, str]]:
    """Sorts 4, 8, 16 as numbers, wherever they stand in a text."""
    parts = re.split(r"(\d+(?:\.\d+)?)", str(cell))
    return [(float(part), "") if i % 2 else (float("inf"), part) for i, part in enumerate(parts) if part]


def notes(runs: Sequence[Run], text: str) -> Iterator[str]:
    """Below the table: states that it had no room for, what is broken, and that nothing has finished."""
    for run in runs:
        cut = [] if run.state in text else [run.state]
        yield from (f"{run.path}: {line}" for line in cut + run.problems)
    if not any(run.state == "done" for run in runs):
        yield f"nothing has finished yet ({len(runs)} run{'s' if len(runs) > 1 else ''})"


if __name__ == "__main__":
    sys.exit(main())
