"""Benchmark every optimised part against a plain implementation of the published formulation: `make bench`.

    python -m benchmarks.bench [--only PART ...] [--runs 5] [--full] [--name NAME] [--device cpu]

Parts: core (prior + attention), operations (dispatched by a step), criterion, optimizer, data, evaluation, backbone,
masks, step, tiny (the whole run of experiment=tiny), precision (bf16 on a CPU), growth (curves), gpu. One thread; about
9 minutes on two cores, 12 to 19 with --full: 5000 images for the evaluation, three seeds for tiny. Prints one table and
stores it as benchmarks/results/NAME.{md,json,png}.
Exits with 1 if a part failed or missed its target.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import ROOT
from benchmarks.report import Row, machine, markdown, store

RESULTS = ROOT / "benchmarks" / "results"
Rows = list[dict[str, Any]]


def rows_of(module: str, function: str = "rows", **arguments: Any) -> Rows:
    return getattr(importlib.import_module(f"benchmarks.{module}"), function)(**arguments)


def parts(options: argparse.Namespace) -> dict[str, Callable[[], Rows]]:
    runs, device = options.runs, options.device
    images, seeds = (5000, 3) if options.full else (1000, 1)
    return {
        "core": lambda: rows_of("core", runs=runs, device=device),
        "operations": lambda: rows_of("operations"),
        "criterion": lambda: rows_of("criterion", runs=runs, device=device),
        "optimizer": lambda: rows_of("step", "optimizer_rows", runs=runs, device=device),
        "data": lambda: rows_of("data", runs=runs),
        "evaluation": lambda: rows_of("evaluation", runs=1, images=images),
        "backbone": lambda: rows_of("backbone", runs=runs),
        "masks": lambda: rows_of("masks", runs=max(2, runs // 2), device=device),
        "step": lambda: rows_of("step", "whole_rows", runs=max(2, runs // 2), device=device),
        "tiny": lambda: rows_of("tiny", seeds=seeds),
        "precision": lambda: rows_of("precision", runs=max(2, runs // 2)),
        "gpu": lambda: rows_of("gpu", runs=runs),
    }


def measured(name: str, part: Callable[[], Rows]) -> list[Row]:
    """A part's rows. A failing part gives one row with its error; the other parts still run."""
    begin = time.monotonic()
    print(f"{name} ...", end=" ", flush=True)
    try:
        found = [Row(**row) for row in part()]
    except Exception as error:
        traceback.print_exc()
        found = [Row(name, failed=f"{type(error).__name__}: {error}".splitlines()[0])]
    print(f"{time.monotonic() - begin:.0f} s", flush=True)
    return found


def grown(options: argparse.Namespace, path: Path) -> tuple[list[dict[str, Any]], list[Row]]:
    """Measure and draw the growth curves. A failure gives a row; points measured before it are drawn."""
    growth = importlib.import_module("benchmarks.growth")
    points: list[dict[str, Any]] = []

    def work() -> Rows:
        for point in growth.curves(runs=max(2, options.runs // 2), device=options.device):
            points.append(point)
        return []

    failed = measured("growth", work)
    if points:
        growth.draw(points, path.with_suffix(".png"))
    return points, failed


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="PART", default=[], help="run only these parts")
    parser.add_argument("--runs", type=int, default=5, help="runs of each side; the median is reported")
    parser.add_argument(
        "--full", action="store_true", help="5000 images for the evaluation, 3 seeds for experiment=tiny"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for core, criterion, optimizer, step and growth")
    parser.add_argument(
        "--name", default=None, help="name of the stored files (default: cpu or gpu; partial with --only)"
    )
    options = parser.parse_args(words)
    known = [*parts(options), "growth"]
    if unknown := set(options.only) - set(known):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    return options


def main() -> int:
    options = arguments()
    torch.set_num_threads(1)
    name = options.name or ("gpu" if torch.cuda.is_available() else "cpu")
    name = name if options.name or not options.only else "partial"
    rows: list[Row] = []
    for part, function in parts(options).items():
        if not options.only or part in options.only:
            rows += measured(part, function)
    growth: list[dict[str, Any]] = []
    if not options.only or "growth" in options.only:
        RESULTS.mkdir(exist_ok=True)
        growth, failed = grown(options, RESULTS / name)
        rows += failed
    print(markdown(rows))
    store(RESULTS / name, rows, growth, machine())
    print(f"\nstored: {(RESULTS / name).relative_to(ROOT)}.md and .json")
    wrong = [row.wrong() for row in rows if row.wrong()]
    if wrong:
        print("\n".join(f"WRONG: {text}" for text in wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
