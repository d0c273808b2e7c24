"""Who looks after a run's process: a shell, or (fovea_detr/study/job.py) SLURM. What stops it, and what is told.

Imports no torch, so that a job can tell of a torch that does not import.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from fovea_detr.errors import RunFolderError, UserError, tell
from fovea_detr.runs.folder import RunFolder, this_start
from fovea_detr.runs.stop import StopFlag, Stopped

# What gloo and NCCL say on the ranks that are left when another one has gone.
LOST = re.compile(
    r"closed by peer|connection reset|broken pipe|remote process exited|socket closed|recv.*EOF|connection refused"
    r"|failed to recv|failed to send",
    re.IGNORECASE,
)


def rank() -> int:
    """This process's rank, known before the process group is there."""
    return int(os.environ.get("RANK", "0"))


class Host:
    """A shell, whose user starts the same command again; torchrun too."""

    lock_seconds = 0.0  # how long another holder of the run folder is waited for

    def __init__(self) -> None:
        self.stop = StopFlag()

    def leave(self, folder: RunFolder, stopped: Stopped) -> NoReturn:
        """The end of a run that was asked to stop and has saved everything."""
        if rank() == 0:
            tell_stopped(folder, stopped)
        sys.exit(stopped.exit_code)


def tell_stopped(folder: RunFolder, stopped: Stopped) -> None:
    folder.write_state("preempted", reason=str(stopped))
    tell(f"{folder.path}: {stopped}; everything is saved, the same command goes on from here")


@contextmanager
def failures_told(folder: RunFolder, host: Host) -> Iterator[None]:
    """Whatever ends the run is in state.json before the process leaves with a non-zero code; the first reason stays."""
    try:
        yield
    except Stopped as stopped:
        host.leave(folder, stopped)
    except RunFolderError:
        raise  # the folder is somebody else's
    except Exception as error:
        tell_failed(folder, error)
        raise


def tell_failed(folder: RunFolder, error: Exception) -> None:
    """state.json says failed, why and on which rank, unless another rank of this start has said so already."""
    state = folder.state() or {}
    if not folder.path.is_dir() or (state.get("state") == "failed" and state.get("start", {}) == this_start()):
        return
    reason = str(error).strip() or type(error).__name__
    if not isinstance(error, UserError) and (lost := LOST.search(reason)):
        reason = f"rank lost: another process of this run has ended (rank {rank()} saw: {lost[0]})"
    trace = None if isinstance(error, UserError) else traceback.format_exc()
    folder.write_state("failed", reason=reason, kind=type(error).__name__, rank=rank(), traceback=trace)
