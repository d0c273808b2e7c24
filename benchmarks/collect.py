"""Time and memory of the table for studies of several sizes; the target is 10,000 folders in 5 s and 200 MB.

    python benchmarks/collect.py [--sizes 100 1000 10000]

Generates run folders (3 seeds, 5 axes, 2 % of them broken) in a temporary folder and runs the command in a new process.
"seconds" is its CPU time, the start of Python included; the last column is the time per additional folder. The folders
were just written and come from the page cache: a cold network file system adds its latency, for five small files per
folder. Memory is the kernel's high-water mark of the process. Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.analysis.made_up import write_study  # noqa: E402

CHILD = """
import os, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(*os.times()[:2], *(line for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
"""


def measure(runs: Path) -> tuple[float, float, str]:
    """-> CPU seconds, peak MiB and output of `analysis/collect.py --runs RUNS`.

    The process reads its own high-water mark, because ru_maxrss includes the parent's memory before exec.
    """
    command = [sys.executable, "-c", CHILD, str(ROOT / "analysis" / "collect.py"), "--runs", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    user, system, *_, peak, _ = done.stderr.split()[-5:]
    return float(user) + float(system), int(peak) / 1024, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1_000, 10_000])
    print(f"{'folders':>8} {'seconds':>8} {'MiB':>6} {'ms per folder beyond the first size':>35}")
    first: tuple[int, float] | None = None
    for size in parser.parse_args().sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_study(Path(folder) / "study", size)
            seconds, peak, _ = measure(Path(folder))
        growth = f"{1000 * (seconds - first[1]) / (size - first[0]):35.2f}" if first else f"{'':>35}"
        first = first or (size, seconds)
        print(f"{size:8d} {seconds:8.2f} {peak:6.0f} {growth}", flush=True)


if __name__ == "__main__":
    main()
