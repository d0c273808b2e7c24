"""The queue of one machine: `hydra/launcher=submitit_local` runs its points here one after another, detached.

`python -m fovea_detr.study.local SUBMISSION_FOLDER` is that process. It holds a lock until it ends, which tells others
whether it is alive.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from fovea_detr.runs.state import Job
from fovea_detr.study.manifest import Submission
from fovea_detr.study.snapshot import module

SECONDS_TO_FOLLOW = 20.0  # for the other ranks to end by themselves once one has failed


def start(submission: Submission) -> str:
    """Start the process that runs the submission's points -> its name, `local-PID`."""
    folder = submission.folder
    python = submission.resources.get("python") or shlex.quote(sys.executable)
    lines = [*submission.resources.get("setup", []), f"cd {shlex.quote(submission.snapshot)} || exit 1"]
    lines += [f"export PYTHONPATH={shlex.quote(submission.snapshot)}${{PYTHONPATH:+:$PYTHONPATH}}"]
    lines += [f"exec {python} -u -m {module(Path(submission.snapshot), 'local')} {shlex.quote(str(folder))}"]
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
    """A point's job in SLURM's words; without a state once the process has ended, or has finished this point.

    record: the point's state.json.
    """
    words = {"queued": "PENDING", "running": "RUNNING"}
    state = words.get(str(record.get("state")), "") if is_alive(submission) else ""
    return Job(submission.job_of(point) or "", submission.name, state)


def is_alive(submission: Submission) -> bool:
    try:
        with (submission.folder / "alive").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class Runner:
    """Runs points one after another, each with its ranks; passes signals on to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.submission = Submission.load(folder)
        self.ranks: list[subprocess.Popen[bytes]] = []
        self.stopped = 0

    def run(self) -> int:
        """-> the number of points that failed."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._pass_on)
        failed = 0
        for n, point in enumerate(self.submission.points):
            if self.stopped:
                break
            codes = self.run_point(n)
            failed += any(codes)
            print(f"{point}: exit codes {codes}", flush=True)
        return failed

    def run_point(self, n: int) -> list[int]:
        world = int(self.submission.resources.get("tasks_per_node", 1))
        self.ranks = [self._start(n, rank, world) for rank in range(world)]
        deadline = None
        while any(process.poll() is None for process in self.ranks):
            if deadline is None and any(process.poll() for process in self.ranks):
                deadline = time.monotonic() + SECONDS_TO_FOLLOW
            if deadline is not None and time.monotonic() > deadline:
                for process in self.ranks:
                    process.kill()
            time.sleep(0.1)
        return [process.wait() for process in self.ranks]

    def _start(self, n: int, rank: int, world: int) -> subprocess.Popen[bytes]:
        rendezvous = self.folder / f".rendezvous-{n}-{os.getpid()}"
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
        environment = {name: str(value) for name, value in ranks.items()} | {"FOVEA_RENDEZVOUS": str(rendezvous)}
        log: IO[bytes]
        with (self.folder / f"local_{n}_{rank}_log.out").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-u", "-m", "fovea_detr.study.job", str(self.folder), str(n)],
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )

    def _pass_on(self, number: int, frame: object) -> None:  # noqa: ARG002 - a signal handler's signature
        self.stopped = number
        for process in self.ranks:
            if process.poll() is None:
                process.send_signal(number)


if __name__ == "__main__":
    sys.exit(min(1, Runner(Path(sys.argv[1])).run()))
