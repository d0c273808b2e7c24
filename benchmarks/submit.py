"""The cost of a sweep's command with the real sbatch, for grids of several sizes: `python benchmarks/submit.py` (root).

It starts the cluster of tests/study/cluster.sh in a folder of its own. For each size: the sweep's command, the same
again with every point queued, and `study status`. CPU seconds are those of the command and its children; the seconds
that SLURM's commands took in all stand apart. All jobs are held, and the cluster is taken down.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "tests/study/cluster.sh"
SLURM = ("sbatch", "squeue", "sacct", "scontrol")
TIMED = '#!/bin/sh\na=$(date +%s%N); {real} "$@"; rc=$?; echo {name} $(($(date +%s%N) - a)) >>{log}; exit $rc\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", nargs="*", type=int, default=[4, 64, 512])
    sizes = parser.parse_args().points
    with tempfile.TemporaryDirectory(prefix="fs", dir="/tmp") as name:
        folder = Path(name)
        environment = start_cluster(folder)
        try:
            print("points  command   seconds   CPU  in SLURM's commands  of which sbatch")
            for points in sizes:
                for command, arguments in commands(folder, points).items():
                    print(f"{points:6}  {command:7} {measured(arguments, environment, folder / 'log')}", flush=True)
        finally:
            subprocess.run(["bash", str(CLUSTER), "down"], env=environment, check=True)


def start_cluster(folder: Path) -> dict[str, str]:
    """-> the environment in which commands find it, with SLURM's commands timed."""
    (folder / "bin").mkdir()
    for name in SLURM:
        script = folder / "bin" / name
        script.write_text(TIMED.format(real=shutil.which(name), name=name, log=folder / "log"))
        script.chmod(0o755)
    cluster = folder / "c"
    environment = {**os.environ, "FOVEA_SLURM_DIR": str(cluster), "FOVEA_SLURM_PORT": "36100"}
    environment |= {"SLURM_CONF": f"{cluster}/slurm.conf", "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", str(CLUSTER), "up"], env=environment, check=True, stdout=subprocess.DEVNULL)
    return {**environment, "PATH": f"{folder / 'bin'}:{environment['PATH']}"}


def commands(folder: Path, points: int) -> dict[str, list[str]]:
    study = f"s{points}"
    sweep = [sys.executable, "run.py", "-m", "hydra/launcher=submitit_slurm", f"study={study}", f"runs={folder}/runs"]
    sweep += ["experiment=tiny", "cluster.gpus=1", "cluster.cpus=1", "cluster.mem_gb=1", "cluster.extra.hold=true"]
    sweep += ["dynamic_scale=type1,type2,type3,type4", f"seed=range({points // 4})"]
    status = [sys.executable, "-m", "fovea_detr.study", "status", study, "--runs", f"{folder}/runs"]
    return {"submit": sweep, "again": sweep, "status": status}


def measured(command: list[str], environment: dict[str, str], log: Path) -> str:
    """Runs the command -> its row: seconds, CPU seconds, seconds in SLURM's commands, and in sbatch."""
    log.write_text("")
    before, begin = cpu(), time.monotonic()
    subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    wall, used = time.monotonic() - begin, cpu() - before
    spent = [(name, int(nanoseconds) / 1e9) for name, nanoseconds in (line.split() for line in log.open())]
    slurm, sbatch = sum(s for _, s in spent), sum(s for name, s in spent if name == "sbatch")
    return f"{wall:9.1f} {used:5.1f} {slurm:20.2f} {sbatch:16.2f}"


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
