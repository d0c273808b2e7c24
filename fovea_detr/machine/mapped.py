"""Values with large arrays as one file, which processes map instead of copying: ranks and workers share its pages.

The file is a pickle, and after it the arrays. It is read only if it belongs to this user.
"""

from __future__ import annotations

import mmap
import os
import pickle
from pathlib import Path
from typing import Any

from fovea_detr.runs.files import write_atomic

ALIGNMENT = 64  # bytes


def write(value: Any, path: Path) -> None:
    """A picklable value, in place of what the file holds: a reader sees the one or the other. OSError."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
    lengths = pickle.dumps([part.nbytes for part in parts])

    def write_parts(file: Any) -> None:
        file.write(len(lengths).to_bytes(8, "little") + lengths)
        for part in parts:
            file.write(bytes(-file.tell() % ALIGNMENT))
            file.write(part)

    write_atomic(path, write_parts)


def read(path: Path) -> Any:
    """What `write` was given. Its arrays may be changed; a changed page is this process's own.

    OSError: there is no such file, or it is another user's. EOFError: it is cut off.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_uid != os.getuid():
            raise PermissionError(f"{path} belongs to another user")
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    end = 8 + int.from_bytes(whole[:8], "little")
    parts = []
    for length in pickle.loads(whole[8:end]):
        start = end + -end % ALIGNMENT
        end = start + length
        parts.append(whole[start:end])
    if end > len(whole):
        raise EOFError(f"{path} is cut off")
    return pickle.loads(parts[0], buffers=parts[1:])
