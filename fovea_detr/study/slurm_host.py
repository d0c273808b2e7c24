"""A run's process in a SLURM job: how it counts its starts, leaves, and asks SLURM to start the job again."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import NoReturn

from fovea_detr.errors import NodeError, UserError, tell
from fovea_detr.runs.folder import RunFolder, this_start
from fovea_detr.runs.host import Host, process_rank, record_stop, write_if_ours
from fovea_detr.runs.stop import StopFlag, Stopped
from fovea_detr.study.queue import SlurmError, command

OTHERS_SECONDS = 60.0  # until a rank that has not published that it stopped is taken to be busy, not dead
TO_BE_ENDED_SECONDS = 180.0
GRACE_SECONDS = 2.0
IDLE_STARTS = 2  # in a row, of one job, that have saved no step: one more would do no better
GIVE_TIME = "give it more time: raise cluster.hours, lower cluster.signal_minutes, or relaunch on an emptier partition"
NODES_WITHOUT_GPU = 3  # then it is not the nodes


class SlurmHost(Host):
    """SLURM, which starts the job again in the same folder on request."""

    lock_seconds = 60.0

    max_restarts: int | None = None

    def __init__(self) -> None:
        self.stop = StopFlag(patient=True)

    def begin(self, folder: RunFolder) -> None:
        """Count the starts of this job that have saved no step, and refuse one too many."""
        start, now = folder.record().get("start") or {}, this_start()
        idle = start.get("idle", 0) if start.get("job") == now["job"] else 0
        if idle >= IDLE_STARTS:
            raise UserError(f"{idle} starts in a row have saved no step, so this one was not tried; {GIVE_TIME}")
        if self.max_restarts is not None and now["restarts"] > self.max_restarts:
            raise UserError(f"this would be restart {now['restarts']}, and {self._limit()}")
        folder.idle_starts = idle + 1

    def why_not_again(self, folder: RunFolder, stopped: Stopped) -> str:
        """The reason not to requeue the job; empty if there is none."""
        if folder.idle_starts >= IDLE_STARTS:
            return f"{stopped}, as {folder.idle_starts} starts in a row before they had saved a step; {GIVE_TIME}"
        if self.max_restarts is not None and this_start()["restarts"] >= self.max_restarts:
            return f"{stopped}, and {self._limit()}"
        return ""

    def _limit(self) -> str:
        return f"cluster.max_restarts={self.max_restarts}; everything is saved, `relaunch` continues it"

    def leave_node(self, folder: RunFolder, error: NodeError) -> None:
        """Requeue the job without this node. Returns if that is of no use: no other node, or several were no better."""
        if os.environ["LOCAL_RANK"] != "0":
            time.sleep(TO_BE_ENDED_SECONDS)  # the first rank of the node decides
        unfit = [*folder.record().get("unfit_nodes", []), os.environ["SLURMD_NODENAME"]]
        if len(unfit) >= NODES_WITHOUT_GPU or not other_nodes(unfit):
            return
        write_if_ours(folder, "preempted", reason=f"{error}; requeued without this node", unfit_nodes=unfit)
        tell(f"[rank {process_rank()}] {error}; {requeue_without(unfit[-1])}")
        time.sleep(TO_BE_ENDED_SECONDS)

    def leave(self, folder: RunFolder, stopped: Stopped) -> NoReturn:
        """Every rank publishes that it has stopped; rank 0 requeues the job; all wait until SLURM ends them.

        A rank that exits early would make the job fail.
        """
        if process_rank() == 0:
            self._wait_for_others(folder, stopped)
            record_stop(folder, stopped)
            refusal = self.why_not_again(folder, stopped)
            requeued = requeue_if_running(refusal)
            if refusal and requeued == refusal:
                folder.write_state("failed", reason=refusal)
                tell(f"[rank 0] {refusal}")
                sys.exit(stopped.exit_code)
            publish("requeued", requeued)
        else:
            publish(f"stopped/{process_rank()}", "yes")
            requeued = wait_for("requeued", OTHERS_SECONDS + TO_BE_ENDED_SECONDS) or "rank 0 does not answer"
        tell(f"[rank {process_rank()}] {stopped}; {requeued}")
        time.sleep(TO_BE_ENDED_SECONDS)
        sys.exit(stopped.exit_code)

    def _wait_for_others(self, folder: RunFolder, stopped: Stopped) -> None:
        """Wait until every rank has published that it stopped, or OTHERS_SECONDS.

        When a rank dies, SLURM stops the others with the same signal, so a rank that does not answer may be dead. The
        folder says so until all have answered: if one is dead, SLURM kills this process before it can write more.
        """
        missing = [r for r in range(1, world_size()) if wait_for(f"stopped/{r}", GRACE_SECONDS) is None]
        if missing and folder.record().get("state") != "failed":
            ranks = ", ".join(map(str, missing))
            folder.write_state("failed", reason=f"rank lost: rank {ranks} has ended without a message ({stopped})")
        end = time.monotonic() + OTHERS_SECONDS
        for number in missing:
            wait_for(f"stopped/{number}", max(0.1, end - time.monotonic()))


def requeue_if_running(refusal: str = "") -> str:
    """Ask SLURM to start this job again, unless SLURM itself is ending it -> what was done.

    refusal: why it is not to be started again; returned if SLURM is not ending it.
    """
    job = this_start()["job"]  # ARRAY_TASK: the bare id of a task may be that of the whole array
    for attempt in range(5):
        try:
            state = command(["squeue", "-h", "-j", job, "-o", "%T"]).strip()
            if state != "RUNNING":
                return f"not requeued: SLURM says {state or 'that it has ended'}"
            if refusal:
                return refusal
            command(["scontrol", "requeue", job])
            return "requeued"
        except SlurmError as error:
            tell(f"attempt {attempt + 1} to requeue job {job}: {error}")
            time.sleep(5)
    return "not requeued: SLURM does not answer"


def requeue_without(node: str) -> str:
    """Requeue this job, then exclude a node: SLURM changes the nodes of pending jobs only -> what was done."""
    job = this_start()["job"]
    try:
        excluded = re.search(r"ExcNodeList=(\S+)", command(["scontrol", "-o", "show", "job", job]))
        before = [] if excluded is None or excluded[1] == "(null)" else [excluded[1]]
    except SlurmError:
        before = []
    done = requeue_if_running()
    for _ in range(10):
        try:
            command(["scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join([*before, node])}"])
            return f"{done} without {node}"
        except SlurmError as error:
            tell(f"excluding {node} from job {job}: {error}")
            time.sleep(0.5)
    return f"{done}; {node} could not be excluded"


def other_nodes(unfit: Sequence[str]) -> bool:
    """Whether the job's partition has enough nodes without these; true if SLURM does not say."""
    try:
        names = command(["sinfo", "-h", "-N", "-p", os.environ["SLURM_JOB_PARTITION"], "-o", "%N"]).split()
    except (SlurmError, KeyError):
        return True
    return len({*names} - {*unfit}) >= int(os.environ.get("SLURM_NNODES", "1"))


def world_size() -> int:
    return int(os.environ["WORLD_SIZE"])


def publish(key: str, value: str) -> None:
    """For the other ranks of this job; nothing if this is the only one."""
    from fovea_detr.machine import rendezvous

    store = rendezvous.store()
    if store is not None:
        store.set(key, value)


def wait_for(key: str, seconds: float) -> str | None:
    """What another rank has published under this key; None if it has not within this time."""
    from fovea_detr.machine import rendezvous

    store = rendezvous.store()
    if store is None:
        return None
    try:
        store.wait([key], timedelta(seconds=seconds))
        return store.get(key).decode()
    except RuntimeError:  # a timeout, or rank 0 has ended
        return None
