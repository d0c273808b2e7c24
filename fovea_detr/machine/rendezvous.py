"""How the ranks of a job find each other without a fixed port, which another job might use.

Rank 0 opens a store on any free port and writes its address into a file that only this start of this job uses.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from fovea_detr.runs.files import write_text

MINUTES = 10  # a node may take long to read torch from a slow disk
_store: TCPStore | None = None


def connect(file: Path, rank: int, world_size: int, host: str) -> TCPStore:
    """The store of all ranks. host: rank 0's address for the others. Raises TimeoutError if the file never appears."""
    global _store
    timeout = timedelta(minutes=MINUTES)
    if rank == 0:
        _store = TCPStore(host, 0, world_size, is_master=True, wait_for_workers=False, timeout=timeout)
        folder_fd = os.open(file.parent, os.O_RDONLY)  # never created again: the submission may have been removed
        write_text(file, f"{host} {_store.port}\n", folder_fd)
        os.close(folder_fd)
    else:
        address, port = read_address(file).split()
        _store = TCPStore(address, int(port), world_size, is_master=False, wait_for_workers=False, timeout=timeout)
    return _store


def read_address(file: Path) -> str:
    end = time.monotonic() + MINUTES * 60
    while time.monotonic() < end:
        # Listing the folder refreshes the cache of a network file system, which may still say that there is no file.
        if file.name in os.listdir(file.parent):
            return file.read_text()
        time.sleep(0.1)
    raise TimeoutError(f"rank 0 has written no address into {file} within {MINUTES} minutes: did it start?")


def store() -> TCPStore | None:
    """The store of this process's job; None for a single process, and under torchrun."""
    return _store
