"""Print the table of an ablation: one row per configuration, mean ± sample standard deviation over its seeds.

    python analysis/collect.py [STUDY ...] [--runs runs] [--metrics AP,AP50,AP_small] [--baseline dynamic_scale=type1]
                               [--where "schedule=50ep"] [--sort AP] [--columns NAMES] [--to results.csv] [--watch]

Reads only run folders, also of running jobs, and never imports torch, so it starts fast on a login node.
Metrics are those of the last evaluation, not the best one. Unfinished rows are marked and never ranked. * marks the
best of the rows with two seeds or more, and all that are not resolved from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `python analysis/SCRIPT.py`

from analysis import script
from analysis.output.formats import DATA, FORMATS, check_format, write
from analysis.output.terminal import footer, render
from analysis.reading.folders import find_runs
from analysis.tables.table import LISTED, Options, Table, make_table
from fovea_detr.errors import UserError

WATCH_SECONDS = 10.0


@script.script
def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    for path in given.to:
        check_format(path)
    try:
        once(given)
        while given.watch and time.sleep(WATCH_SECONDS) is None:
            once(given)
    except BrokenPipeError:  # the reader (`head`, a pager) has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """The names are those of Options, where it has them."""
    whole = script.parser(__doc__)
    add = whole.add_argument
    add("studies", nargs="*", metavar="STUDY", help="folders in RUNS (default: all)")
    script.add_runs(whole)
    add("--metrics", default="AP,AP50", help=f"all, or some of {LISTED} (AP,AP50)")
    add("--baseline", metavar="KEY=VALUE,...", help="differences to this row, each with its interval and verdict")
    add("--why", action="store_true", help="with --baseline: the parts of each verdict")
    add("--plan", type=float, metavar="AP", help="how many seeds and GPU-hours resolve a difference of so many AP: 0.3")
    conditions = "KEY=VALUE, KEY=A,B, KEY!=VALUE, KEY>NUMBER; AP>40%%"
    add("--where", action="append", default=[], metavar="CONDITION", help=conditions)
    add("--columns", type=_names, default="", metavar="NAMES", help="only these columns, in this order: smooth,AP,n")
    add("--percent", action=argparse.BooleanOptionalAction, default=True, help="AP as 41.0 (default), else as 0.410")
    add("--sort", metavar="COLUMN", help="columns, the most important first: metrics descending, others ascending")
    add("--reverse", action="store_true", help="reverse the order of --sort")
    add("--seeds", dest="by_seed", action="store_true", help="one row per run instead of the mean over seeds")
    add("--to", action="append", default=[], type=Path, metavar="FILE", help=f"also write FILE: {', '.join(FORMATS)}")
    add("--since", metavar="DATE", help="in the page: what changed since 2026-11-20 (default: since the page before)")
    add("--siunitx", action="store_true", help="in .tex: numbers by the package siunitx")
    add("--watch", action="store_true", help=f"repeat every {WATCH_SECONDS:.0f} s until no run is running or waiting")
    return whole


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def once(given: argparse.Namespace) -> None:
    """Read, print and write the table. Turns --watch off when no run is open any more."""
    table = make_table(find_runs(given.runs, given.studies), options(given))
    for path in given.to:
        write(table, path, given.since, siunitx=given.siunitx)
    size = shutil.get_terminal_size((120, 24)).columns
    text = render(table, size, bold=sys.stdout.isatty())
    print("\033[H\033[J" if given.watch and sys.stdout.isatty() else "", end="")
    written = (f"written: {path}{' (metrics as fractions)' if path.suffix in DATA else ''}" for path in given.to)
    print("\n".join([text, *footer(table, text), *reasons(table, given), *written]), flush=True)
    given.watch = given.watch and any(run.standing.is_open for run in table.runs)


def reasons(table: Table, given: argparse.Namespace) -> Iterator[str]:
    """The lines of --why and --plan."""
    if not given.why and given.plan is None:
        return
    from analysis.tables import verdicts  # only here: it loads scipy

    yield from verdicts.why(table.every, table.verdicts) if given.why else ()
    yield from verdicts.plans(table.rows, given.plan, table.verdicts) if given.plan is not None else ()


def options(given: argparse.Namespace) -> Options:
    endings = {path.suffix.lower() for path in given.to}
    for asked, has_use, line in (
        (given.why, given.baseline, "--why tells the parts of differences: add --baseline KEY=VALUE"),
        (given.reverse, given.sort, "--reverse turns an order round: add --sort COLUMN"),
        (given.since, ".html" in endings, "--since is for the page: add --to FILE.html"),
        (given.siunitx, ".tex" in endings, "--siunitx is for LaTeX: add --to FILE.tex"),
    ):
        if asked and not has_use:
            raise UserError(line)
    if given.plan is not None and not 0 < given.plan < 100:
        raise UserError(f"--plan {given.plan:g}: a difference in AP as the table prints it, above 0: --plan 0.3")
    named = {field.name for field in dataclasses.fields(Options)} & vars(given).keys()
    return Options(**{name: getattr(given, name) for name in named})


if __name__ == "__main__":
    sys.exit(main())
