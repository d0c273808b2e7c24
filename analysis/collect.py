"""Print the table of an ablation: one row per configuration, mean ± sample standard deviation over its seeds.

    python analysis/collect.py [STUDY ...] [--runs runs] [--metrics AP,AP50,AP_small] [--baseline dynamic_scale=type1]
                               [--where "schedule=50ep"] [--sort AP] [--to results.csv] [--watch]

Reads only run folders, also of running jobs, and never imports torch, so it starts fast on a login node.
Metrics are those of the last evaluation, not the best one. Unfinished rows are marked and never ranked.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `python analysis/SCRIPT.py`

from analysis.output.formats import FORMATS, check_format, write
from analysis.output.terminal import footer, render
from analysis.reading.folders import find_runs
from analysis.tables.table import Options, make_table, metric_names
from fovea_detr.errors import UserError
from fovea_detr.runs.folder import METRICS

WATCH_SECONDS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    try:
        for path in given.to:
            check_format(path)
        once(given)
        while given.watch and time.sleep(WATCH_SECONDS) is None:
            once(given)
    except BrokenPipeError:  # the reader (`head`, a pager) has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = whole.add_argument
    add("studies", nargs="*", metavar="STUDY", help="folders in RUNS (default: all)")
    add("--runs", type=Path, default=Path("runs"), help="the folder of the studies (default: runs)")
    add("--metrics", default="AP,AP50", help=f"all, or a list of {', '.join(METRICS)} (default: AP,AP50)")
    add("--baseline", metavar="KEY=VALUE", help="show differences to this row; several conditions: KEY=VALUE,KEY=VALUE")
    add("--where", action="append", default=[], metavar="CONDITION", help="KEY=VALUE, KEY=A,B, KEY!=VALUE, KEY>NUMBER")
    add("--sort", metavar="COLUMN", help="columns, the most important first: metrics descending, others ascending")
    add("--reverse", action="store_true", help="reverse the order of --sort")
    add("--seeds", action="store_true", help="one row per run instead of the mean over seeds")
    add("--to", action="append", default=[], type=Path, metavar="FILE", help=f"also write FILE: {', '.join(FORMATS)}")
    add("--watch", action="store_true", help=f"repeat every {WATCH_SECONDS:.0f} s until no run is running or waiting")
    return whole


def once(given: argparse.Namespace) -> None:
    """Read, print and write the table. Turns --watch off when no run is open any more."""
    table = make_table(find_runs(given.runs, given.studies), options(given))
    for path in given.to:
        write(table, path)
    text = render(table, shutil.get_terminal_size((120, 24)).columns)
    print("\033[H\033[J" if given.watch and sys.stdout.isatty() else "", end="")
    print("\n".join([text, *footer(table, text), *(f"written: {path}" for path in given.to)]), flush=True)
    given.watch = given.watch and any(run.standing.is_open for run in table.runs)


def options(given: argparse.Namespace) -> Options:
    metrics = metric_names(given.metrics)
    return Options(metrics, given.baseline, tuple(given.where), given.sort, given.reverse, given.seeds)


if __name__ == "__main__":
    sys.exit(main())
