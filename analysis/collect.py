"""The table of an ablation: a row for each configuration, mean ± sample standard deviation over its seeds.

    python analysis/collect.py [STUDY ...] [--runs runs] [--metrics AP,AP50,AP_small] [--baseline dynamic_scale=type1]
                               [--where "schedule=50ep"] [--sort AP] [--to results.csv] [--watch]

Reads run folders and nothing else, at any time, and never imports torch: it is quick on a login node while jobs run.
Metrics are those of the last evaluation, not of the best one. A row before its end ranks nothing, and says so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script has its own folder there, not `analysis`

from analysis.output.formats import FORMATS, check_format, write
from analysis.output.terminal import below, render
from analysis.reading.folders import find_runs
from analysis.tables.table import Options, Table, make_table
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
    except BrokenPipeError:  # the reader, `head` or a pager, has seen enough
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
    add("studies", nargs="*", metavar="STUDY", help="folders of RUNS; all of them if none is named")
    add("--runs", type=Path, default=Path("runs"), help="the folder of all studies (default: runs)")
    add("--metrics", default="AP,AP50", help=f"all, or some of {', '.join(METRICS)}")
    add("--baseline", metavar="KEY=VALUE", help="the row that differences are taken to; KEY=VALUE,KEY=VALUE if need be")
    add("--where", action="append", default=[], metavar="CONDITION", help="KEY=VALUE, KEY=A,B, KEY!=VALUE, KEY>NUMBER")
    add("--sort", metavar="COLUMN", help="columns, the first one first: scores from the best down, others upwards")
    add("--reverse", action="store_true", help="the other way round")
    add("--seeds", action="store_true", help="a row for every run instead of the mean over seeds")
    add("--to", action="append", default=[], type=Path, metavar="FILE", help=f"write it, too: {', '.join(FORMATS)}")
    add("--watch", action="store_true", help=f"again every {WATCH_SECONDS:.0f} s, until nothing runs or waits")
    return whole


def once(given: argparse.Namespace) -> None:
    """Read, print, write. With --watch, end the watching when nothing can change by itself any more."""
    table = make_table(find_runs(given.runs, given.studies), options(given))
    for path in given.to:
        write(table, path)
    text = render(table, shutil.get_terminal_size((120, 24)).columns)
    print("\033[H\033[J" if given.watch and sys.stdout.isatty() else "", end="")
    print("\n".join([text, *below(table, text), *(f"written: {path}" for path in given.to)]), flush=True)
    given.watch = given.watch and is_alive(table)


def options(given: argparse.Namespace) -> Options:
    metrics = METRICS if given.metrics == "all" else tuple(dict.fromkeys(given.metrics.split(",")))
    return Options(metrics, given.baseline, tuple(given.where), given.sort, given.reverse, given.seeds)


def is_alive(table: Table) -> bool:
    return any(run.standing.is_open for run in table.runs)


if __name__ == "__main__":
    sys.exit(main())
