"""The process of this machine's queue: `python -m fovea_detr.study.runner SUBMISSION_FOLDER`.

It runs the submission's points, `parallel` at a time, and looks into the manifest for those that are cancelled.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from fovea_detr.runs.files import write_text
from fovea_detr.runs.folder import RunFolder
from fovea_detr.study import manifest, retry
from fovea_detr.study.manifest import Submission

SECONDS_TO_FOLLOW = 20.0  # for the other ranks to end by themselves once one has failed


@dataclass
class Running:
    """A point that runs: its ranks, and when those that are left are killed."""

    number: int
    slot: list[str]
    ranks: list[subprocess.Popen[bytes]] = field(default_factory=list)
    deadline: float | None = None

    def signal(self, number: int) -> None:
        for process in self.ranks:
            if process.poll() is None:
                process.send_signal(number)

    def has_ended(self) -> bool:
        """Whether all ranks have; those that outlive a failed one for SECONDS_TO_FOLLOW are killed."""
        codes = [process.poll() for process in self.ranks]
        if any(codes) and self.deadline is None:
            self.deadline = time.monotonic() + SECONDS_TO_FOLLOW
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.signal(signal.SIGKILL)
        return None not in codes


class Runner:
    """Runs points, some at a time, each with its ranks; passes signals on to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.submission = Submission.load(folder)
        self.slots: list[list[str]] = self.submission.resources.get("slots") or [[]]
        self.world = int(self.submission.resources.get("tasks_per_node", 1))
        self.running: list[Running] = []
        self.stopped = False
        self.manifest_size = -1
        self.cancelled: set[str] = set()

    def run(self) -> int:
        """-> the number of points that failed."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._pass_on)
        waiting, free, failed = list(range(len(self.submission.points))), list(self.slots), 0
        while self.running or (waiting and not self.stopped):
            self._cancel()
            while free and waiting and not self.stopped:
                if not self._is_cancelled(n := waiting.pop(0)):
                    self.running.append(self._start(n, free.pop(0)))
            for one in [one for one in self.running if one.has_ended()]:
                self.running.remove(one)
                free.insert(0, one.slot)
                if self._is_to_run_again(one):
                    waiting.insert(0, one.number)
                else:
                    failed += self._end(one)
            time.sleep(0.1)
        return failed

    def _point(self, number: int) -> str:
        return self.submission.points[number]

    def _is_cancelled(self, number: int) -> bool:
        """Whether a waiting point is; then it has ended."""
        found = self._point(number) in self.cancelled
        if found:
            write_text(self.submission.exit_file(self._point(number)), "0\n")
        return found

    def _cancel(self) -> None:
        """Look for new lines of the manifest, and ask running points that were cancelled to save and end."""
        study = self.folder.parent.parent
        size = manifest.manifest_file(study).stat().st_size
        if size != self.manifest_size:
            self.manifest_size = size
            ours = next(one for one in manifest.read(study) if one.id == self.submission.id)
            new = set(ours.cancelled) - self.cancelled
            self.cancelled |= new
            for one in self.running:
                if self._point(one.number) in new:
                    one.signal(signal.SIGTERM)

    def _start(self, n: int, slot: list[str]) -> Running:
        self.submission.exit_file(self._point(n)).unlink(missing_ok=True)
        meeting = self.folder / f".rendezvous-{n}-{os.getpid()}-{time.monotonic_ns()}"  # of this start
        return Running(n, slot, [self._start_rank(n, slot, rank, meeting) for rank in range(self.world)])

    def _start_rank(self, n: int, slot: list[str], rank: int, meeting: Path) -> subprocess.Popen[bytes]:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.world, "MASTER_ADDR": "127.0.0.1"}
        threads = max(1, len(os.sched_getaffinity(0)) // (self.world * len(self.slots)))
        environment = {"OMP_NUM_THREADS": str(threads)} if not slot else {}
        environment |= {**os.environ, **{name: str(value) for name, value in ranks.items()}}
        environment["FOVEA_RENDEZVOUS"] = str(meeting)
        if slot:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot)
        log: IO[bytes]
        with (self.folder / f"local_{n}_{rank}_log.out").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-u", "-m", "fovea_detr.study.job", str(self.folder), str(n)],
                stdout=log,
                stderr=log,
                env=environment,
            )

    def _is_to_run_again(self, one: Running) -> bool:
        point = self._point(one.number)
        if self.stopped or point in self.cancelled or not any(process.returncode for process in one.ranks):
            return False
        return retry.is_due(self.submission, point, RunFolder(self.folder.parent.parent / point).state())

    def _end(self, one: Running) -> bool:
        """-> whether it failed."""
        codes = [process.returncode for process in one.ranks]
        worst = max(map(abs, codes))
        write_text(self.submission.exit_file(self._point(one.number)), f"{worst}\n")
        print(f"{self._point(one.number)}: exit codes {codes}", flush=True)
        return worst != 0

    def _pass_on(self, number: int, frame: object) -> None:  # noqa: ARG002 - a signal handler's signature
        self.stopped = True
        for one in self.running:
            one.signal(number)


if __name__ == "__main__":
    sys.exit(min(1, Runner(Path(sys.argv[1])).run()))
