"""Time and memory of the table for studies of several sizes; the target is 10,000 folders in 5 s and 200 MB.

    python -m benchmarks.collect [--sizes 100 1000 10000] [--verdicts]

Generates run folders (3 seeds, 5 axes, 2 % of them broken) in a temporary folder and runs the command in a new process.
"seconds" is its CPU time, the start of Python included; the last column is the time per additional folder. The folders
were just written and come from the page cache: a cold network file system adds its latency, for five small files per
folder. Memory is the kernel's high-water mark of the process. Linux only.

--verdicts: instead, the table with --baseline of 11 rows of 3 seeds, each run with the matches of a split like COCO's
val2017 (5000 images, 300 detections each): the first time, at most 6 minutes, and from the study's cache, at most 5 s.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from analysis.statistics.images import resample_once
from benchmarks.evaluation import random_case
from fovea_detr.evaluation.coco import GroundTruth
from fovea_detr.evaluation.matches import Matches, write_matches
from fovea_detr.evaluation.matching import matches_of
from fovea_detr.runs.folder import COCO_METRICS, RunFolder
from tests.analysis.made_up import grid, write_run, write_study

ROOT = Path(__file__).resolve().parent.parent
RUNS = 33
BASELINE = "model=fovea_r50,dynamic_scale=type1,mixture=none,schedule=50ep"

CHILD = """
import os, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(*os.times()[:2], *(line for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
"""


def measure(runs: Path, *options: str) -> tuple[float, float, str]:
    """-> CPU seconds, peak MiB and output of `analysis/collect.py --runs RUNS`.

    The process reads its own high-water mark, because ru_maxrss includes the parent's memory before exec.
    """
    command = [sys.executable, "-c", CHILD, str(ROOT / "analysis" / "collect.py"), "--runs", str(runs), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    user, system, *_, peak, _ = done.stderr.split()[-5:]
    return float(user) + float(system), int(peak) / 1024, done.stdout


def write_matched(study: Path, images: int = 5000, detections: int = 300) -> None:
    """RUNS finished runs on one split, each with matches of its own: it misses some of the objects that are found."""
    case = random_case(images, detections)
    whole = matches_of(GroundTruth(case.content), case.table, 0.0)
    for i, (point, config) in enumerate(islice(grid(RUNS), RUNS)):
        path = study / point
        path.mkdir(parents=True)
        write_run(path, config, random.Random(i), epochs=8)
        found = np.random.default_rng(i).random(len(whole.images)) > 0.02
        write_with_ap(RunFolder(path), replace(whole, matched=np.where(found, whole.matched, 0)))


def write_with_ap(folder: RunFolder, matches: Matches) -> None:
    only = [metric for metric in COCO_METRICS if metric.name == "AP"]
    ap = resample_once(matches, np.ones(len(matches.image_ids)), only)["AP"]
    result = json.loads((folder.path / "result.json").read_text())
    folder.write_result({**result, "last": {**result["last"], "AP": ap}})
    write_matches(folder, replace(matches, ap=ap))


def verdicts() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_matched(Path(folder) / "study")
        print(f"{'':12} {'CPU s':>7} {'seconds':>8} {'MiB':>6}")
        for when in ("first", "from cache"):
            begin = time.perf_counter()
            seconds, peak, text = measure(Path(folder), "--baseline", BASELINE, "--why")
            assert text.count("; images [") == 2 * (RUNS // 3 - 1), text
            print(f"{when:12} {seconds:7.2f} {time.perf_counter() - begin:8.2f} {peak:6.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--verdicts", action="store_true")
    options = parser.parse_args()
    if options.verdicts:
        verdicts()
        return
    print(f"{'folders':>8} {'seconds':>8} {'MiB':>6} {'ms per folder beyond the first size':>35}")
    first: tuple[int, float] | None = None
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_study(Path(folder) / "study", size)
            seconds, peak, _ = measure(Path(folder))
        growth = f"{1000 * (seconds - first[1]) / (size - first[0]):35.2f}" if first else f"{'':>35}"
        first = first or (size, seconds)
        print(f"{size:8d} {seconds:8.2f} {peak:6.0f} {growth}", flush=True)


if __name__ == "__main__":
    main()
