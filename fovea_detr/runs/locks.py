"""The lock of a folder, which one process holds until it ends. Standard library only."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from fovea_detr.errors import RunFolderError, tell
from fovea_detr.runs.clock import seconds_since
from fovea_detr.runs.files import adopt_group, make_folder, why_not_writable

BUSY = (errno.EACCES, errno.EAGAIN)
ATTEMPTS = 5  # to lock a file that others remove at the same time
BEAT_SECONDS, STALE_SECONDS = 10.0, 45.0  # of a lock without flock


LOCKS: weakref.WeakSet[Lock] = weakref.WeakSet()


class Lock:
    """Holds `.lock` in a folder by fcntl's lockf (of this process only) or flock (inherited by its children).

    A lock whose file was removed or replaced is no lock: after locking, the file is looked for again under its name.
    The folder is locked, too (by flock; on a network file system only against processes of this machine), so that the
    removal of `.lock` lets nobody else in. Without file locks (ENOSYS, as on some Lustre mounts), a file with the
    holder's name is created exclusively instead, and one line on stderr says so.
    """

    def __init__(self, folder: Path, lock: Callable[[IO[bytes], int], None] | None = None) -> None:
        self.folder = folder
        self._lock = lock or fcntl.lockf
        self._file: IO[bytes] | None = None
        self._holder: Holder | None = None
        self.folder_fd = -1
        LOCKS.add(self)

    def acquire(self) -> bool:
        """Lock the folder, which is created if needed -> whether it was free. RunFolderError if it is not writable."""
        for _ in range(ATTEMPTS):
            self.folder_fd, self._file = _open(self.folder)
            if not (self._lock_folder() and self._lock_file()):
                self.release()
                return False
            if self.is_in_place():
                return True
            self.release()
        return False

    def release(self) -> None:
        if self._holder is not None:
            self._holder.release()
        if self._file is not None:
            self._file.close()
        self.close_folder()
        self._file, self._holder = None, None

    def close_folder(self) -> None:
        if self.folder_fd >= 0:
            os.close(self.folder_fd)
        self.folder_fd = -1

    def fileno(self) -> int:
        """Of the locked file: a child that inherits it keeps the lock (flock)."""
        assert self._file is not None
        return self._file.fileno()

    def is_in_place(self) -> bool:
        """Whether the folder and the locked file are still those under their names."""
        return is_same(self.folder, self.folder_fd) and is_same(self.folder / ".lock", self.fileno())

    def restore(self) -> bool:
        """Lock `.lock` again, which was removed or replaced -> whether nobody else had locked it since."""
        assert self._file is not None
        try:
            self._file.close()
            self._file = _open_file(self.folder)
        except OSError:
            return False
        return self._lock_file() and self.is_in_place()

    def _lock_folder(self) -> bool:
        try:
            fcntl.flock(self.folder_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in BUSY  # else: folders cannot be locked here, `.lock` has to do
        return True

    def _lock_file(self) -> bool:
        assert self._file is not None
        try:
            self._lock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in BUSY:  # another process holds it
                return False
            self._holder = Holder(self.folder / ".lock.holder")
            _tell_once(f"{self.folder.parent}: no file locks here ({error.strerror}); files named .lock.holder do it")
            return self._holder.take()
        return True


def _forget_folders() -> None:
    """A forked worker, which may live longer than its parent, holds no lock."""
    for lock in LOCKS:
        lock.close_folder()


os.register_at_fork(after_in_child=_forget_folders)


class Holder:
    """A lock where the file system has none: a file that only one process can create, renewed every BEAT_SECONDS.

    It counts no longer when it is older than STALE_SECONDS by the file server's clock, or its process has ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._facts = {"host": socket.gethostname(), "pid": os.getpid(), "token": secrets.token_hex(8)}
        self._ended = threading.Event()

    def take(self) -> bool:
        for _ in range(ATTEMPTS):
            try:
                with self.path.open("x") as file:
                    json.dump(self._facts, file)
            except FileExistsError:
                if not self._remove_stale():
                    return False
                continue
            threading.Thread(target=self._renew, daemon=True).start()
            return True
        return False

    def release(self) -> None:
        self._ended.set()
        if self._read() == self._facts:
            self.path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._ended.wait(BEAT_SECONDS) and self._read() == self._facts:
            with suppress(OSError):
                os.utime(self.path)

    def _read(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            return json.loads(self.path.read_text())
        return {}

    def _remove_stale(self) -> bool:
        """Remove the file if its holder has ended. Renamed first: of two that find it stale, one removes it."""
        before = self._read()
        with suppress(FileNotFoundError):
            if not (_has_ended(before) or seconds_since(self.path) > STALE_SECONDS):
                return False
            aside = self.path.with_name(f"{self.path.name}.{self._facts['token']}")
            os.rename(self.path, aside)
            aside.unlink()
        return True


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether the process was one of this machine and is no more."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    return False


def is_same(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one under this name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _open(folder: Path) -> tuple[int, IO[bytes]]:
    try:
        make_folder(folder)
        file = _open_file(folder)
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY), file
    except OSError as error:
        raise RunFolderError(why_not_writable(folder, error)) from None


def _open_file(folder: Path) -> IO[bytes]:
    path = folder / ".lock"
    is_new = not path.exists()
    file = path.open("ab")
    if is_new:
        adopt_group(file.fileno(), folder)
    return file


def _tell_once(line: str, told: set[str] = set()) -> None:  # noqa: B006 - what this process has said
    if line not in told:
        told.add(line)
        tell(f"note: {line}")
