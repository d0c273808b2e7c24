"""The queue of one machine: `hydra/launcher=submitit_local` runs its points here, detached, `parallel` at a time.

Its process (runner.py) holds a lock until it ends, which tells others whether it is alive.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fovea_detr.config.schema import Config
from fovea_detr.errors import ConfigError
from fovea_detr.runs.state import Job
from fovea_detr.study.manifest import Submission
from fovea_detr.study.snapshot import module

SECONDS_TO_SAVE = 120.0  # for a cancelled point


def machine() -> str:
    return socket.gethostname()


def gpus() -> list[str]:
    """The GPUs of this machine that we may use, as CUDA_VISIBLE_DEVICES names them. Asks no torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(n) for n, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


def resources(config: Config, launcher: Mapping[str, Any]) -> dict[str, Any]:
    """What a point gets of this machine: its share of the GPUs, a process on each; without any, one process."""
    at_once = launcher["parallel"]
    found = [] if config.device == "cpu" else gpus()
    if at_once < 1 or (found and at_once > len(found)):
        raise ConfigError(
            f"hydra.launcher.parallel={at_once}: choose 1 to {len(found) or 'the number of cores'}, as many as this "
            "machine has GPUs; device=cpu needs none"
        )
    share = len(found) // at_once
    slots = [found[n * share : (n + 1) * share] for n in range(at_once)]
    setup = [*config.cluster.setup, *(launcher.get("setup") or [])]
    asked = {"slots": slots, "tasks_per_node": launcher.get("tasks_per_node") or max(1, share), "setup": setup}
    return asked | {"python": config.cluster.python, "retries": config.cluster.retries}


def describe(asked: Mapping[str, Any]) -> str:
    """What will be started here, for a dry run."""
    slots, processes = asked["slots"], asked["tasks_per_node"]
    devices = " and ".join(f"GPU {','.join(slot)}" if slot else "the CPU" for slot in slots if slot or not slots[0])
    where = devices if slots[0] else "the CPU"
    each = f"{processes} process{'es' if processes > 1 else ''} a point"
    return f"{machine()}: {len(slots)} point{'s' if len(slots) > 1 else ''} at a time, {each}, on {where}"


def start(submission: Submission) -> str:
    """Start the process that runs the submission's points -> its name, `local-PID`."""
    folder = submission.folder
    python = submission.resources.get("python") or shlex.quote(sys.executable)
    lines = [*submission.resources.get("setup", []), f"cd {shlex.quote(submission.snapshot)} || exit 1"]
    lines += [f"export PYTHONPATH={shlex.quote(submission.snapshot)}${{PYTHONPATH:+:$PYTHONPATH}}"]
    code = Path(submission.snapshot)
    program = "runner" if (code / "fovea_detr/study/runner.py").is_file() else "local"  # of an earlier version
    lines += [f"exec {python} -u -m {module(code, program)} {shlex.quote(str(folder))}"]
    with (folder / "local.out").open("ab") as log, (folder / "alive").open("ab") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)  # inherited: held from the start of the process until its end
        process = subprocess.Popen(
            ["bash", "-c", "\n".join(lines)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[alive.fileno()],
            start_new_session=True,
            env={**os.environ, "FOVEA_ALIVE": str(alive.fileno())},
        )
    return f"local-{process.pid}"


def job(submission: Submission, point: str, record: Mapping[str, Any]) -> Job:
    """A point's job in SLURM's words; without a state once the process has ended and has not told how.

    record: the point's state.json.
    """
    id_ = submission.job_of(point) or ""
    if not submission.exit_file(point).exists():
        words = {"queued": "PENDING", "running": "RUNNING"}
        if is_alive(submission):
            return Job(id_, submission.name, words.get(str(record.get("state")), ""))
    return submission.end_of(point) or Job(id_, submission.name, "")


def is_alive(submission: Submission) -> bool:
    try:
        with (submission.folder / "alive").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def wait_until_ended(points: Iterable[tuple[Submission, str]]) -> None:
    """Until their processes have saved and ended, which a relaunch needs; SECONDS_TO_SAVE at most."""
    end = time.monotonic() + SECONDS_TO_SAVE
    for submission, point in points:
        while is_alive(submission) and not submission.exit_file(point).exists() and time.monotonic() < end:
            time.sleep(0.1)
