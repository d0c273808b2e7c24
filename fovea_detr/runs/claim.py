"""A process's claim to a run folder: it writes into that folder, as long as it is this run's, and nowhere else."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fovea_detr.errors import RunFolderError
from fovea_detr.runs.files import write_text
from fovea_detr.runs.locks import Lock, is_same

ID_FILE = ".run"


class Claim:
    """The open folder, and the id of the run in it, which is made at its first start and carried by its checkpoints.

    lock: of the process that writes the run's files; None on the other ranks. is_first: the folder had no id before.
    """

    def __init__(self, path: Path, folder_fd: int, run_id: str, lock: Lock | None, *, is_first: bool = False) -> None:
        self.path = path
        self.folder_fd = folder_fd
        self.run_id = run_id
        self.is_first = is_first
        self._lock = lock

    @classmethod
    def take(cls, path: Path) -> Claim | None:
        """Lock the folder, which is created if needed; None if another process holds it."""
        lock = Lock(path)
        if not lock.acquire():
            return None
        found = read_id(path)
        if found is None:
            write_text(path / ID_FILE, secrets.token_hex(8) + "\n", lock.folder_fd)
        return cls(path, lock.folder_fd, read_id(path) or "", lock, is_first=found is None)

    @classmethod
    def join(cls, path: Path, run_id: str, *, is_first: bool) -> Claim:
        """For another rank than the one that has locked the folder."""
        return cls(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY), run_id, None, is_first=is_first)

    def close(self) -> None:
        if self._lock is None:
            os.close(self.folder_fd)
        else:
            self._lock.release()

    def check(self) -> None:
        """Raise RunFolderError if the folder was removed, moved, replaced, emptied or taken over by another process."""
        if not is_same(self.path, self.folder_fd):
            raise RunFolderError(
                f"{self.path}: the folder was removed, moved or replaced while this run was working in it; the run "
                "stops and writes nothing more"
            )
        now = read_id(self.path)
        if now != self.run_id:
            raise RunFolderError(
                f"{self.path}: the folder is no longer this run's (its id was {self.run_id}, now it is "
                f"{now or 'removed'}): the run stops and writes nothing more"
            )
        if self._lock is not None and not self._lock.is_in_place() and not self._lock.restore():
            raise RunFolderError(
                f"{self.path}: the lock of this run was removed, and another process has taken the folder over; this "
                "run stops and writes nothing more"
            )

    @contextmanager
    def writing(self) -> Iterator[int]:
        """The open folder to write into, after a check. A folder that is removed meanwhile is named as such."""
        self.check()
        try:
            yield self.folder_fd
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                self.check()
            raise


def read_id(path: Path) -> str | None:
    with suppress(OSError):
        return (path / ID_FILE).read_text().strip() or None
    return None
