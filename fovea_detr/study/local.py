"""The queue of one machine: `hydra/launcher=submitit_local` runs its points here one after another, detached.

`python -m fovea_detr.study.local SUBMISSION_FOLDER` is that process. It holds a lock as long as it lives, which is how
others see that it does.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from fovea_detr.study.manifest import Manifest, Submission

SECONDS_TO_FOLLOW = 20.0  # for the other ranks to end by themselves once one has failed


def send(manifest: Manifest, submission: Submission) -> str:
    """Start the process that runs the submission's points -> its name, `local-PID`."""
    folder = manifest.submission_folder(submission.id)
    python = submission.resources.get("python") or shlex.quote(sys.executable)
    lines = [*submission.resources.get("setup", []), f"cd {shlex.quote(submission.snapshot)} || exit 1"]
    lines += [f"export PYTHONPATH={shlex.quote(submission.snapshot)}${{PYTHONPATH:+:$PYTHONPATH}}"]
    lines += [f"exec {python} -u -m fovea_detr.study.local {shlex.quote(str(folder))}"]
    with (folder / "local.out").open("ab") as log, (folder / "alive").open("ab") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)  # inherited, and so held from the first moment until the process ends
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


def is_alive(manifest: Manifest, submission: Submission) -> bool:
    try:
        with (manifest.submission_folder(submission.id) / "alive").open("rb") as file:
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
        self.submission = Submission(**json.loads((folder / "submission.json").read_text()))
        self.ranks: list[subprocess.Popen[bytes]] = []
        self.stopped = 0

    def run(self) -> int:
        """-> the number of points that have failed."""
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
        meeting = self.folder / f".rendezvous-{n}-{os.getpid()}"
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
        environment = {name: str(value) for name, value in ranks.items()} | {"FOVEA_RENDEZVOUS": str(meeting)}
        log: IO[bytes]
        with (self.folder / f"local_{n}_{rank}_log.out").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-u", "-m", "fovea_detr.study.job", str(self.folder), str(n)],
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )

    def _pass_on(self, number: int, frame: object) -> None:  # noqa: ARG002 - the signature of a handler
        self.stopped = number
        for process in self.ranks:
            if process.poll() is None:
                process.send_signal(number)


if __name__ == "__main__":
    sys.exit(min(1, Runner(Path(sys.argv[1])).run()))
