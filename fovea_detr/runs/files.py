"""How files are written: atomically, and for the group what their folder is. Standard library only."""

from __future__ import annotations

import os
import pwd
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


def write_atomic(path: Path, write: Callable[[IO[bytes]], object], folder_fd: int | None = None) -> None:
    """Replace `path` by what `write` puts into the open file; after a crash there is the old file or the new one.

    folder_fd: an open folder, in which `path` is then a name: a folder that was removed is not created again, and one
    that took its place is left alone. Without it, the folder is created if needed.
    """
    if folder_fd is None:
        make_folder(path.parent)
        folder_fd = os.open(path.parent, os.O_RDONLY)
        try:
            return write_atomic(path, write, folder_fd)
        finally:
            os.close(folder_fd)
    temporary = f".{path.name}.{os.getpid()}.{threading.get_native_id()}.tmp"
    with open_in(folder_fd, temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path.name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
    os.fsync(folder_fd)


def write_text(path: Path, text: str, folder_fd: int | None = None) -> None:
    write_atomic(path, lambda file: file.write(text.encode()), folder_fd)


def open_in(folder_fd: int, name: str, flags: int) -> IO[bytes]:
    """A file of an open folder, to be written. A new one is for the group what the folder is."""
    descriptor = os.open(name, flags, 0o666, dir_fd=folder_fd)
    adopt_group(descriptor, folder_fd)
    return os.fdopen(descriptor, "ab" if flags & os.O_APPEND else "wb")


@contextmanager
def inner_folder(folder_fd: int, name: str) -> Iterator[int]:
    """A folder inside an open one, made where it is missing and open within the block."""
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=folder_fd)
    inner_fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder_fd)
    try:
        adopt_group(inner_fd, folder_fd)
        yield inner_fd
    finally:
        os.close(inner_fd)


def make_folder(path: Path) -> None:
    """Create a folder and its parents where they are missing, for the group what the parent is (setgid, too)."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    adopt_group(path, path.parent)


def adopt_group(new: Path | int, folder: Path | int) -> None:
    """Give the group of a file or folder of ours what it may do with the folder around it, if it is the same group."""
    ours, around = os.stat(new), os.stat(folder)
    bits = around.st_mode & (stat.S_IRWXG if stat.S_ISDIR(ours.st_mode) else stat.S_IRGRP | stat.S_IWGRP)
    missing = bits & ~ours.st_mode
    if missing and ours.st_gid == around.st_gid and ours.st_uid == os.geteuid():
        with suppress(OSError):  # a file system without modes
            os.chmod(new, stat.S_IMODE(ours.st_mode) | missing)


def why_not_writable(folder: Path, error: OSError) -> str:
    """One line: who owns what cannot be written, and what helps."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    with suppress(OSError, KeyError):
        facts = there.stat()
        if isinstance(error, PermissionError) and facts.st_uid != os.geteuid():
            owner = pwd.getpwuid(facts.st_uid).pw_name
            return (
                f"{folder}: cannot write there ({error.strerror}): {there} belongs to {owner}, mode "
                f"{stat.S_IMODE(facts.st_mode):04o}; let {owner} run `chmod -R g+rwX {there}`, or choose runs=FOLDER"
            )
    return f"{folder}: cannot write there ({error.strerror}); choose runs=FOLDER"
