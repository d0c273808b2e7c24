"""Compare two rows or two runs: configuration, code, packages, data, outcome, curves; is the difference real?

    python analysis/compare.py A B [--metrics AP,AP50] [--runs runs] [--study STUDY]

A and B are rows (`dynamic_scale=type1`, or the row's name), or runs: a run folder, or STUDY/POINT in RUNS. The
difference is B minus A, in AP as the table prints it, with its 95 % interval: by metric, by size of the object, by
category (at most 5 % of those called better or worse are false discoveries) and by TIDE's error types. No torch.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `python analysis/SCRIPT.py`

from analysis import script
from analysis.reading.folders import find_runs
from analysis.reading.runs import read_run
from analysis.reading.settings import read_settings
from analysis.tables.cells import NOTHING, Column, metric_column, rounded, show
from analysis.tables.comparison import find_row
from analysis.tables.rows import Row
from analysis.tables.table import LISTED, NUMBERS, Options, make_table
from fovea_detr.config.schema import leaves
from fovea_detr.errors import UserError
from fovea_detr.evaluation.matches import OF_BOXES, OF_MASKS
from fovea_detr.runs.folder import SEGM
from fovea_detr.runs.settings import as_typed
from fovea_detr.runs.state import FOREIGN

NOT_COMPARED = ("time", "command", "job", "later_starts", "total_batch_size")  # the batch size is in the outcome
SIZES = ("AP_small", "AP_medium", "AP_large")
MOST_CATEGORIES = 12
LOSS = Column("loss", "loss", 3)
Lines = list[list[str]]


@script.script
def main(arguments: Sequence[str] | None = None) -> None:
    whole = script.parser(__doc__)
    whole.add_argument("row", nargs=2, metavar="ROW", help="KEY=VALUE,..., a run folder, or STUDY/POINT in RUNS")
    whole.add_argument("--metrics", default="AP", help=f"all, or a list of {LISTED} (default: AP)")
    script.add_runs(whole)
    whole.add_argument("--study", action="append", default=[], help="the study of the rows (default: all)")
    given = whole.parse_args(arguments)
    options = Options(given.metrics)
    rows, both = find(given.row, given.runs, given.study)
    metrics = options.metrics_of([run for row in both for run in row.runs])
    print("\n".join(text(rows, both, metrics, shutil.get_terminal_size((120, 24)).columns)))


def find(names: Sequence[str], runs: Path, studies: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """-> the rows whose spread counts, and the two that are compared; a run is a row of its own."""
    folders = [next((path for path in (Path(name), runs / name) if path.is_dir()), None) for name in names]
    for name, path in zip(names, folders, strict=True):
        if path is None and "/" in name.partition("=")[0]:
            raise UserError(f"{name}: no such run folder, neither here nor in {runs}")
    rows = make_table(find_runs(runs, studies), Options(tested=False)).rows if None in folders else []
    both = [
        find_row(rows, name, "") if path is None else as_row(path) for name, path in zip(names, folders, strict=True)
    ]
    return [*rows, *(row for row in both if row not in rows)], both


def as_row(path: Path) -> Row:
    run = read_run(path.resolve())
    if run.standing.word == FOREIGN:
        raise UserError(f"{path}: not a run folder; run folders are RUNS/STUDY/POINT")
    run.settings = read_settings(run.settings)
    return Row(run.study, run.settings, [run], label=str(path))


def text(rows: Sequence[Row], both: Sequence[Row], metrics: Sequence[str], width: int) -> Iterator[str]:
    from analysis.tables.verdicts import without_matches  # only here: it loads scipy

    tests = list(tested(rows, both, metrics))  # which find out what is wrong with matches
    yield from (f"{letter}: {row.label} ({row.state})" for letter, row in zip("AB", both, strict=True))
    yield from (f"{run.path}: {problem}" for row in both for run in row.runs for problem in run.problems)
    yield from without_matches(both, metrics)
    parts = {"configuration": [row.settings for row in both], "made with": [facts(row) for row in both]}
    parts["outcome"] = [outcome(row, metrics) for row in both]
    for title, (first, second) in parts.items():
        lines = differences(first, second)
        yield f"\n{title}: {'differences' if lines else 'no difference'}"
        yield from columns([["", "A", "B"], *lines], width) if lines else ()
    for title, lines in (*tests, ("by epoch", curves(both, metrics))):
        yield f"\n{title}:" if len(lines) > 1 else f"\n{title}: no numbers"
        yield from columns(lines, width, right=True) if len(lines) > 1 else ()


def differences(first: Mapping[str, str], second: Mapping[str, str]) -> Lines:
    keys = list(dict.fromkeys([*first, *second]))
    return [
        [key, first.get(key, NOTHING), second.get(key, NOTHING)] for key in keys if first.get(key) != second.get(key)
    ]


def facts(row: Row) -> dict[str, str]:
    """The leaves of provenance.json that can affect the numbers: `code.sha`, `packages.torch`, `data.val`."""
    found: dict[str, dict[str, None]] = {}
    for run in row.counted:
        kept = {key: value for key, value in run.provenance.items() if key not in NOT_COMPARED}
        for key, value in leaves(kept).items():
            found.setdefault(key, {})[as_typed(value)] = None
    return {key: " / ".join(values) for key, values in found.items()}


def outcome(row: Row, metrics: Sequence[str]) -> dict[str, str]:
    shown = [*map(metric_column, metrics), *NUMBERS]
    return {column.title: show(column, cell) for column in shown if (cell := row.mean(column.name))}


def tested(rows: Sequence[Row], both: Sequence[Row], metrics: Sequence[str]) -> Iterator[tuple[str, Lines]]:
    """The differences with interval and verdict, by metric and size, by category, and by error type."""
    from analysis.tables import verdicts  # only here: it loads scipy

    a, b = both
    files = [file for file, _ in verdicts.asked_of(metrics)]
    sizes = [*SIZES, *(f"{SEGM}{size}" for size in SIZES if OF_MASKS in files)]
    found = verdicts.contrast(rows, a, b, list(dict.fromkeys([*metrics, *sizes])))
    parts = {"difference, B minus A": found}
    found = verdicts.by_category(a, b)
    largest = sorted(found, key=lambda name: -abs(found[name].delta))[:MOST_CATEGORIES]
    title = f"by category, the {len(largest)} that differ most of {len(found)}" if found else "by category"
    parts[title] = {name: found[name] for name in largest}
    for file in (OF_BOXES, OF_MASKS) if OF_MASKS in files else (OF_BOXES,):
        name = file.score.replace("AP", "AP50")
        parts[f"{name} lost to each of TIDE's error types, less is better"] = verdicts.by_error(a, b, file)
    for title, told in parts.items():
        yield title, [["", "B-A", "95 %", "is"], *(verdicts.line(name, one) for name, one in told.items())]


def curves(both: Sequence[Row], metrics: Sequence[str]) -> Lines:
    """One line per epoch; a mean is over all runs of a row, as in the figures."""
    from analysis.tables.frames import epochs_frame, over_seeds  # only here: it loads pandas

    shown = [*map(metric_column, metrics), LOSS]
    lines = [["epoch", *(f"{column.title} {letter}" for column in shown for letter in ("A", "B", "B-A"))]]
    frames = [epochs_frame([row], []) for row in both]
    means = {
        (column, i): over_seeds(own, "epoch", column.name).set_index("epoch")["mean"].to_dict()
        for column in shown
        for i, own in enumerate(frames)
        if column.name in own
    }
    for epoch in sorted({epoch for own in frames for epoch in own["epoch"].dropna()}):
        cells = [_triple(column, *(means.get((column, i), {}).get(epoch) for i in (0, 1))) for column in shown]
        lines.append([f"{epoch:.0f}", *(cell for triple in cells for cell in triple)])
    return lines


def _triple(column: Column, a: float | None, b: float | None) -> list[str]:
    both = [NOTHING if one is None else rounded(column, one) for one in (a, b)]
    return [*both, NOTHING if a is None or b is None else rounded(column.difference(), b - a)]


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
