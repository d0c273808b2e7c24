"""Real runs for tests: `run.py` as a user starts it, on one process or on several gloo ranks under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from fovea_detr.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def command(*overrides: str, ranks: int = 1) -> list[str]:
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [*start, str(ROOT / "run.py"), *overrides]


def start(*overrides: str, ranks: int = 1, cwd: Path = ROOT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*overrides, ranks=ranks),
        cwd=cwd,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(*overrides: str, ranks: int = 1, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run to the end; the test checks the exit code."""
    process = start(*overrides, ranks=ranks, cwd=cwd)
    out, error = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def run_well(*overrides: str, ranks: int = 1) -> str:
    """Run to the end, which must succeed -> stdout."""
    done = run(*overrides, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def only_folder(runs: Path, study: str = "tiny") -> RunFolder:
    """The one run folder of a study."""
    (path,) = [path for path in (runs / study).iterdir() if path.is_dir()]
    return RunFolder(path)


def wait_for(condition, process: subprocess.Popen[str], seconds: float = 120) -> bool:
    """Wait until the condition holds (True) or the process has ended (False)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    raise AssertionError(f"nothing happened in {seconds} s")


def open_to_others(folder: Path) -> None:
    """Let other users enter a temporary folder: pytest makes it, and those around it, for its own user only."""
    for path in (folder, *folder.parents):
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(0o755)
