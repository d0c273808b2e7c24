"""Compare two runs: differences in configuration, code, packages, data and outcome, and metrics by epoch.

    python analysis/compare.py RUN RUN [--metrics AP,AP50] [--runs runs]

RUN is a run folder, or STUDY/POINT in RUNS. Reads only these two folders and never imports torch.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `python analysis/SCRIPT.py`

from analysis.reading.outcome import score
from analysis.reading.runs import Run, read_run
from analysis.tables.cells import NOTHING, Column, rounded
from analysis.tables.table import NUMBERS, Options, metric_names
from fovea_detr.config.schema import leaves
from fovea_detr.errors import UserError
from fovea_detr.runs.folder import METRICS
from fovea_detr.runs.identity import as_typed
from fovea_detr.runs.state import FOREIGN, number

NOT_COMPARED = ("time", "command", "job", "later_starts", "total_batch_size")  # the batch size is in the outcome
Lines = list[list[str]]


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    try:
        metrics = Options(metric_names(given.metrics)).metrics
        both = [find(run, given.runs) for run in given.run]
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(text(both, metrics, shutil.get_terminal_size((120, 24)).columns)))
    return 0


def parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole.add_argument("run", nargs=2, metavar="RUN", help="a run folder, or STUDY/POINT in RUNS")
    whole.add_argument("--metrics", default="AP", help=f"all, or a list of {', '.join(METRICS)} (default: AP)")
    whole.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of the studies (default: runs)")
    return whole


def find(name: str, runs: Path) -> Run:
    for path in (Path(name), runs / name):
        if path.is_dir():
            run = read_run(path.resolve())
            if run.standing.word == FOREIGN:
                raise UserError(f"{path}: not a run folder; run folders are RUNS/STUDY/POINT")
            return run
    raise UserError(f"{name}: no such run; give its folder, or STUDY/POINT in --runs {runs}")


def text(both: Sequence[Run], metrics: Sequence[str], width: int) -> Iterator[str]:
    yield from (f"{letter}: {run.path} ({run.state})" for letter, run in zip("AB", both, strict=True))
    yield from (f"{run.path}: {problem}" for run in both for problem in run.problems)
    parts = {"configuration": [run.settings for run in both], "made with": [facts(run) for run in both]}
    parts["outcome"] = [outcome(run, metrics) for run in both]
    for title, (first, second) in parts.items():
        lines = differences(first, second)
        yield ""
        yield f"{title}: {'differences' if lines else 'no difference'}"
        yield from columns([["", "A", "B"], *lines], width) if lines else ()
    epochs = curves(both, metrics)
    yield ""
    yield "by epoch:" if epochs else "by epoch: no epoch has finished"
    heads = [f"{name} {letter}" for name in metrics for letter in ("A", "B", "B-A")] + ["loss A", "loss B", "loss B-A"]
    yield from columns([["epoch", *heads], *epochs], width, right=True) if epochs else ()


def differences(first: Mapping[str, str], second: Mapping[str, str]) -> Lines:
    keys = list(dict.fromkeys([*first, *second]))
    return [
        [key, first.get(key, NOTHING), second.get(key, NOTHING)] for key in keys if first.get(key) != second.get(key)
    ]


def facts(run: Run) -> dict[str, str]:
    """The leaves of provenance.json that can affect the numbers: `code.sha`, `packages.torch`, `data.val`."""
    kept = {key: value for key, value in run.provenance.items() if key not in NOT_COMPARED}
    return {key: as_typed(value) for key, value in leaves(kept).items()}


def outcome(run: Run, metrics: Sequence[str]) -> dict[str, str]:
    shown = [*(Column(name, name, 3) for name in metrics), *NUMBERS]
    return {column.title: rounded(column, run.numbers[column.name]) for column in shown if column.name in run.numbers}


def curves(both: Sequence[Run], metrics: Sequence[str]) -> Lines:
    """One line per epoch of either run."""
    first, second = ({number(line.get("epoch")): line for line in run.history} for run in both)
    keys = [(name, Column(name, name, 3)) for name in metrics] + [("loss", Column("loss", "loss", 3))]
    return [
        [
            f"{epoch:.0f}",
            *(cell for key, column in keys for cell in _triple(column, first.get(epoch), second.get(epoch), key)),
        ]
        for epoch in sorted(epoch for epoch in first.keys() | second.keys() if not math.isnan(epoch))
    ]


def _triple(column: Column, first: dict[str, Any] | None, second: dict[str, Any] | None, key: str) -> list[str]:
    a, b = (score((line or {}).get(key)) for line in (first, second))
    signed = Column(column.name, column.title, column.digits, signed=True)
    pairs = ((column, a), (column, b), (signed, b - a))
    return [NOTHING if math.isnan(value) else rounded(shown, value) for shown, value in pairs]


def columns(lines: Lines, width: int, right: bool = False) -> Iterator[str]:
    """Aligned lines. Long values are cut to the width; keys are not."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    if not right:
        room = max(10, (width - widths[0] - 4) // 2)
        widths[1:] = [min(room, wide) for wide in widths[1:]]
    for line in lines:
        cells = [cell if len(cell) <= wide else f"{cell[: wide - 1]}…" for cell, wide in zip(line, widths, strict=True)]
        padded = [cell.rjust(w) if right else cell.ljust(w) for cell, w in zip(cells, widths, strict=True)]
        yield "  ".join(padded).rstrip()


if __name__ == "__main__":
    sys.exit(main())
