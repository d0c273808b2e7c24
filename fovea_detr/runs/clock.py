"""How long ago a file was written, by the clock of its file server: those of two machines may differ by minutes."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile


def seconds_since(path: Path) -> float:
    """Since the last write to a file. FileNotFoundError if there is none."""
    facts = path.stat()
    return time.time() + _ahead(facts.st_dev, path.parent.parent) - facts.st_mtime


@cache
def _ahead(device: int, folder: Path) -> float:  # noqa: ARG001 - one measurement for each file system and folder
    """The server's clock less this machine's, in seconds; 0 where nothing can be written.

    Measured by a file that has no name (on NFS: none after this function).
    """
    with suppress(OSError), TemporaryFile(dir=folder) as file:
        before = time.time()
        file.write(b".")
        file.flush()
        return os.fstat(file.fileno()).st_mtime - before
    return 0.0
