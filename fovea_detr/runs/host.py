"""The supervisor of a run's process, a shell or SLURM (fovea_detr/study/job.py): how a stopped or failed run exits.

Imports no torch, so that a job can record the failure of `import torch`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from fovea_detr.errors import NodeError, RunFolderError, UserError, tell
from fovea_detr.runs.folder import RunFolder, this_start
from fovea_detr.runs.last_error import RANK_LOST
from fovea_detr.runs.stop import StopFlag, Stopped


def process_rank() -> int:
    """This process's rank, from the environment: it is known before the process group exists."""
    return int(os.environ.get("RANK", "0"))


class Host:
    """A shell or torchrun: the user starts the same command again."""

    lock_seconds = 0.0  # how long to wait until another process releases the run folder
    gpus_asked = ""  # in a job: what it has asked for, `gpu:4`

    def __init__(self) -> None:
        self.stop = StopFlag()

    def begin(self, folder: RunFolder) -> None:
        """Called once this process has claimed the folder, before it writes its state. Raises UserError."""

    def leave_node(self, folder: RunFolder, error: NodeError) -> None:
        """Called on every rank that finds its node unfit, before the run fails. It does not return if it goes on."""

    def leave(self, folder: RunFolder, stopped: Stopped) -> NoReturn:
        """End a run that was asked to stop and has saved everything."""
        if process_rank() == 0:
            record_stop(folder, stopped)
        sys.exit(stopped.exit_code)


def record_stop(folder: RunFolder, stopped: Stopped) -> None:
    folder.write_state("preempted", reason=str(stopped))
    tell(f"{folder.path}: {stopped}; everything is saved, the same command continues it")


@contextmanager
def record_failures(folder: RunFolder, host: Host) -> Iterator[None]:
    """Write what ends the run into state.json before the process exits with a non-zero code; the first reason stays."""
    try:
        yield
    except Stopped as stopped:
        host.leave(folder, stopped)
    except RunFolderError:
        raise  # the folder belongs to another run
    except NodeError as error:
        host.leave_node(folder, error)
        record_failure(folder, error)
        raise
    except Exception as error:
        record_failure(folder, error)
        raise


def record_failure(folder: RunFolder, error: Exception) -> None:
    """Write failed, the reason and the rank into state.json, unless another rank of this start has done so already.

    Nothing is written where the folder is gone, or another process works in it.
    """
    if is_of_this_start(folder.record(), "failed"):
        return
    reason = str(error).strip() or type(error).__name__
    if not isinstance(error, UserError) and (lost := RANK_LOST.search(reason)):
        reason = f"rank lost: another process of this run has ended (rank {process_rank()} saw: {lost[0]})"
    trace = None if isinstance(error, UserError) else traceback.format_exc()
    rank = getattr(error, "rank", process_rank())
    write_if_ours(folder, "failed", reason=reason, kind=type(error).__name__, rank=rank, traceback=trace)


def write_if_ours(folder: RunFolder, state: str, **details: Any) -> None:
    """Write state.json, unless the folder is gone or another process works in it."""
    is_claimed = folder.claimed is not None
    try:
        if folder.path.is_dir() and (is_claimed or folder.try_lock()):
            folder.write_state(state, **details)
    except RunFolderError as error:
        tell(f"{state} ({details.get('reason')}) is not written: {error}")
    finally:
        if not is_claimed:
            folder.unlock()


def is_of_this_start(record: Mapping[str, Any], state: str) -> bool:
    """Whether state.json is in this state, and was written by a rank of this start of this job."""
    start = record.get("start") or {}
    return (
        record.get("state") == state
        and {key: start[key] for key in ("job", "restarts") if key in start} == this_start()
    )
