"""How the ranks of a job find each other without a port agreed on beforehand, which another job might have taken.

Rank 0 opens a store on whatever port is free and leaves its address in a file that only this start of this job uses.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from fovea_detr.runs.folder import write_text

MINUTES = 10  # a node may still be reading torch from a slow disk
_store: TCPStore | None = None


def meet(file: Path, rank: int, world_size: int, host: str) -> TCPStore:
    """The store that all ranks share. host: rank 0's address as the others reach it. TimeoutError if it never comes."""
    global _store
    timeout = timedelta(minutes=MINUTES)
    if rank == 0:
        _store = TCPStore(host, 0, world_size, is_master=True, wait_for_workers=False, timeout=timeout)
        write_text(file, f"{host} {_store.port}\n")
    else:
        address, port = address_in(file).split()
        _store = TCPStore(address, int(port), world_size, is_master=False, wait_for_workers=False, timeout=timeout)
    return _store


def address_in(file: Path) -> str:
    end = time.monotonic() + MINUTES * 60
    while time.monotonic() < end:
        # Listing the folder makes a network file system look again; asking for the name alone may be answered "no"
        # from its memory.
        if file.name in os.listdir(file.parent):
            return file.read_text()
        time.sleep(0.1)
    raise TimeoutError(f"rank 0 has left no address in {file} within {MINUTES} minutes: did it start?")


def store() -> TCPStore | None:
    """The store of this process's job; None for a run of one process, or of torchrun."""
    return _store
