"""The program of a job, once per task: `python -m fovea_detr.study.job SUBMISSION_FOLDER [POINT'S NUMBER]`.

It reads only what was frozen at submission. It listens for signals before torch is imported, sets the ranks, runs the
point, and asks SLURM to requeue the job when it has to stop.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from fovea_detr.cli import one_line_errors
from fovea_detr.config.schema import Config
from fovea_detr.errors import tell
from fovea_detr.runs.folder import RunFolder, this_start
from fovea_detr.runs.host import Host, process_rank, record_failures, record_stop
from fovea_detr.runs.stop import StopFlag, Stopped
from fovea_detr.study.manifest import Submission, load_frozen
from fovea_detr.study.queue import SlurmError, command

OTHERS_SECONDS = 60.0  # until a rank that has not published that it stopped is taken to be busy, not dead
TO_BE_ENDED_SECONDS = 180.0
GRACE_SECONDS = 2.0


class SlurmHost(Host):
    """SLURM, which starts the job again in the same folder on request."""

    lock_seconds = 60.0

    def __init__(self) -> None:
        self.stop = StopFlag(patient=True)

    def leave(self, folder: RunFolder, stopped: Stopped) -> NoReturn:
        """Every rank publishes that it has stopped; rank 0 requeues the job; all wait until SLURM ends them.

        A rank that exits early would make the job fail.
        """
        if process_rank() == 0:
            self._wait_for_others(folder, stopped)
            record_stop(folder, stopped)
            requeued = requeue_if_running()
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
        if missing and (folder.state() or {}).get("state") != "failed":
            ranks = ", ".join(map(str, missing))
            folder.write_state("failed", reason=f"rank lost: rank {ranks} has ended without a message ({stopped})")
        end = time.monotonic() + OTHERS_SECONDS
        for number in missing:
            wait_for(f"stopped/{number}", max(0.1, end - time.monotonic()))


def requeue_if_running() -> str:
    """Ask SLURM to start this job again, unless SLURM itself is ending it -> what was done."""
    job = this_start()["job"]  # ARRAY_TASK: the bare id of a task may be that of the whole array
    for attempt in range(5):
        try:
            state = command(["squeue", "-h", "-j", job, "-o", "%T"]).strip()
            if state != "RUNNING":
                return f"not requeued: SLURM says {state or 'that it has ended'}"
            command(["scontrol", "requeue", job])
            return "requeued"
        except SlurmError as error:
            tell(f"attempt {attempt + 1} to requeue job {job}: {error}")
            time.sleep(5)
    return "not requeued: SLURM does not answer"


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


def set_ranks(folder: Path, index: int) -> None:
    """Set torch's variables from SLURM's. Each start of a job has a rendezvous file of its own."""
    slurm = os.environ
    several_nodes = int(slurm.get("SLURM_NNODES", "1")) > 1
    start = "-".join(slurm.get(name) or "0" for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID"))
    os.environ |= {
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": slurm["SLURM_NTASKS"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        # Only rank 0's is used: it is written into the rendezvous file.
        "MASTER_ADDR": slurm["SLURMD_NODENAME"] if several_nodes else "127.0.0.1",
        "FOVEA_RENDEZVOUS": str(folder / f".rendezvous-{index}-{start}"),
    }


def main(folder: Path, index: int) -> None:
    submission = Submission.load(folder)
    os.environ["FOVEA_COMMAND"] = json.dumps(submission.command)
    in_slurm = submission.kind == "slurm"
    if in_slurm:
        set_ranks(folder, index)
    host, point = SlurmHost() if in_slurm else Host(), submission.points[index]
    with host.stop.listening(), one_line_errors():
        config = load_frozen(submission.config_file(point))
        with record_failures(RunFolder(Path(config.runs) / config.study / point), host):
            run_and_clean_up(config, point, host)


def run_and_clean_up(config: Config, point: str, host: Host) -> None:
    """Run the point, then remove the file of the ranks' rendezvous."""
    from fovea_detr import experiment

    if process_rank() == 0:
        start = this_start()
        print(f"[{point}] job {start.get('job')}, restart {start.get('restarts')}, {world_size()} ranks", flush=True)
    try:
        experiment.run(config, point, host)
    finally:
        if process_rank() == 0:
            Path(os.environ["FOVEA_RENDEZVOUS"]).unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2] if len(sys.argv) > 2 else os.environ["SLURM_ARRAY_TASK_ID"]))
