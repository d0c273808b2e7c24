"""Seconds from a sweep's command to sbatch, for grids of several sizes: `python benchmarks/submit.py`.

sbatch, squeue and sacct are stand-ins on PATH that answer at once, so the time is that of our code and Hydra's:
composing and checking every point, the snapshot, the frozen configurations, the states, the manifest. A real sbatch
adds its time once, for any number of points. The second figure is the same command again, with every point queued.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SBATCH = "#!/bin/sh\ndate +%s.%N > $STAMP\necho Submitted batch job 1\n"
SQUEUE = '#!/bin/sh\ni=0\nwhile [ $i -lt $POINTS ]; do echo "1_$i|name|PENDING|Priority"; i=$((i + 1)); done\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", nargs="*", type=int, default=[4, 64, 512])
    print("points  command to sbatch  a point  the same again")
    for points in parser.parse_args().points:
        first, again = measure(points)
        print(f"{points:6}  {first:15.1f} s  {1000 * first / points:4.0f} ms  {again:12.1f} s", flush=True)


def measure(points: int) -> tuple[float, float]:
    """-> seconds to sbatch, and seconds of the same command again, to its end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stand_in(folder / "bin/sbatch", SBATCH)
        stand_in(folder / "bin/squeue", SQUEUE)
        stand_in(folder / "bin/sacct", "#!/bin/sh\n")
        environment = {**os.environ, "STAMP": str(folder / "stamp"), "POINTS": str(points)}
        environment["PATH"] = f"{folder / 'bin'}:{environment['PATH']}"
        axes = ["dynamic_scale=type1,type2,type3,type4", f"seed=range({points // 4})"]
        where = [f"runs={folder / 'runs'}", "experiment=tiny", "hydra/launcher=submitit_slurm"]
        command = [sys.executable, str(ROOT / "run.py"), "-m", *where, *axes]
        begin = time.time()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        first = float((folder / "stamp").read_text()) - begin
        begin = time.time()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        return first, time.time() - begin


def stand_in(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(script)
    path.chmod(0o755)


if __name__ == "__main__":
    main()
