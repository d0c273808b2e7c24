"""Which rank of a run is silent: each touches a file in the run folder, and looks at those of the others.

A stopped process (SIGSTOP, a frozen node) holds all ranks in their next collective, where no Python code runs: a thread
of its own looks. Standard library only.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress

from fovea_detr.errors import UserError, tell
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.host import process_rank, record_failure

LONGEST_SECONDS = 10.0  # between two beats
EXIT_CODE = 3


class SilentRankError(UserError):
    """A rank shows no sign of life."""

    def __init__(self, rank: int, seconds: float) -> None:
        super().__init__(
            f"rank {rank} has been silent for {seconds / 60:.3g} min (cluster.stall_minutes): it, or its node, is "
            "stopped or hangs; the run goes on from its last checkpoint when it is launched again"
        )
        self.rank = rank


class Heartbeat:
    """The thread of this rank, within a block. minutes: of another rank's silence until this process is ended.

    Only this machine's clock is used: a file that has not changed between two looks is silent.
    """

    def __init__(self, folder: RunFolder, rank: int, world_size: int, minutes: float) -> None:
        assert folder.claimed is not None
        self._folder = folder
        # Opened again, not duplicated: forked workers inherit it, and would keep the lock of a duplicate.
        self._folder_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder.claimed.folder_fd)
        self._name = file_name(rank)
        self._limit = minutes * 60
        self._every = min(LONGEST_SECONDS, self._limit / 8)
        self._looked = time.monotonic()
        self._since = {other: self._looked for other in range(world_size) if other != rank}
        self._written: dict[int, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """A rank that has ended leaves no file, and the others no longer look for it."""
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            os.unlink(self._name, dir_fd=self._folder_fd)
        os.close(self._folder_fd)

    def silent_rank(self) -> SilentRankError | None:
        """Look once at the files of the other ranks."""
        now = time.monotonic()
        if now - self._looked > self._limit / 2:  # this process itself was stopped, and perhaps all of them
            self._since = dict.fromkeys(self._since, now)
        self._looked = now
        for rank in list(self._since):
            self._look(rank, now)
        silent = [
            SilentRankError(rank, now - since) for rank, since in self._since.items() if now - since > self._limit
        ]
        return silent[0] if silent else None

    def _look(self, rank: int, now: float) -> None:
        try:
            written = os.stat(file_name(rank), dir_fd=self._folder_fd).st_mtime_ns
        except OSError:
            if rank in self._written:  # it has ended; if it was killed, its file is still there
                del self._since[rank]
            return
        if self._written.get(rank) != written:
            self._written[rank], self._since[rank] = written, now

    def _run(self) -> None:
        while True:
            with suppress(OSError):  # a full disk, or the folder is gone: rank 0 stops when it writes next
                os.close(os.open(self._name, os.O_WRONLY | os.O_CREAT, 0o666, dir_fd=self._folder_fd))
                os.utime(self._name, dir_fd=self._folder_fd)
            if (error := self.silent_rank()) is not None:
                self._leave(error)
            if self._ended.wait(self._every):
                return

    def _leave(self, error: SilentRankError) -> None:
        """The main thread waits in a collective, from which no exception wakes it."""
        tell(f"[rank {process_rank()}] error: {error}")
        with suppress(OSError, ValueError):
            record_failure(self._folder, error)
        os._exit(EXIT_CODE)


def file_name(rank: int) -> str:
    return f".rank-{rank}"
