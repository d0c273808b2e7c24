"""What runs inside a job, once per task: `python -m fovea_detr.study.job SUBMISSION_FOLDER [POINT'S NUMBER]`.

It reads what was frozen at submission and nothing else. It listens for signals before torch is loaded, finds the other
ranks, runs the point, and when it is asked to stop has SLURM start the job again.
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
from fovea_detr.runs.host import Host, failures_told, rank, tell_stopped
from fovea_detr.runs.stop import StopFlag, Stopped
from fovea_detr.study.manifest import load_frozen
from fovea_detr.study.queue import SlurmError, command

SECONDS_FOR_THE_OTHERS = 60.0  # until a rank that has not said that it stopped is taken to be busy, not dead
SECONDS_TO_BE_ENDED = 180.0
SECONDS_OF_DOUBT = 2.0


class SlurmHost(Host):
    """SLURM, which starts the job again in the same folder if it is asked to."""

    lock_seconds = 60.0

    def __init__(self) -> None:
        self.stop = StopFlag(patient=True)

    def leave(self, folder: RunFolder, stopped: Stopped) -> NoReturn:
        """Every rank says that it has stopped; rank 0 has SLURM requeue the job; all wait for SLURM to end them.

        A rank that left early would be the failure of the job.
        """
        if rank() == 0:
            self._wait_for_others(folder, stopped)
            tell_stopped(folder, stopped)
            requeued = requeue_if_running()
            _say("verdict", requeued)
        else:
            _say(f"stopped/{rank()}", "yes")
            requeued = _hear("verdict", SECONDS_FOR_THE_OTHERS + SECONDS_TO_BE_ENDED) or "rank 0 does not answer"
        tell(f"[rank {rank()}] {stopped}; {requeued}")
        time.sleep(SECONDS_TO_BE_ENDED)
        sys.exit(stopped.exit_code)

    def _wait_for_others(self, folder: RunFolder, stopped: Stopped) -> None:
        """When a rank dies, SLURM ends the others with the same signal: only a rank that answers has not died.

        Until all have, the folder says that one is lost. If it is, SLURM kills this one before it can say otherwise.
        """
        missing = [r for r in range(1, world_size()) if _hear(f"stopped/{r}", SECONDS_OF_DOUBT) is None]
        if missing and (folder.state() or {}).get("state") != "failed":
            ranks = ", ".join(map(str, missing))
            folder.write_state("failed", reason=f"rank lost: rank {ranks} has ended without a word ({stopped})")
        end = time.monotonic() + SECONDS_FOR_THE_OTHERS
        for number in missing:
            _hear(f"stopped/{number}", max(0.1, end - time.monotonic()))


def requeue_if_running() -> str:
    """Ask SLURM to start this job again, unless it is ending it for a reason of its own -> what was done."""
    job = this_start()["job"]  # ARRAY_TASK: the bare id of a task may be that of the whole array
    for attempt in range(5):
        try:
            state = command(["squeue", "-h", "-j", job, "-o", "%T"]).strip()
            if state != "RUNNING":
                return f"SLURM has it as {state or 'gone'}: left to it"
            command(["scontrol", "requeue", job])
            return "requeued"
        except SlurmError as error:
            tell(f"attempt {attempt + 1} to requeue job {job}: {error}")
            time.sleep(5)
    return "SLURM does not answer: not requeued"


def world_size() -> int:
    return int(os.environ["WORLD_SIZE"])


def _say(key: str, value: str) -> None:
    from fovea_detr.machine import rendezvous

    store = rendezvous.store()
    if store is not None:
        store.set(key, value)


def _hear(key: str, seconds: float) -> str | None:
    """What another rank has said; None if it has not within this time."""
    from fovea_detr.machine import rendezvous

    store = rendezvous.store()
    if store is None:
        return None
    try:
        store.wait([key], timedelta(seconds=seconds))
        return store.get(key).decode()
    except RuntimeError:  # the time is over, or rank 0 has gone
        return None


def set_ranks(folder: Path, index: int) -> None:
    """torch's variables from SLURM's. The file by which the ranks meet belongs to this start of this job alone."""
    slurm = os.environ
    several_nodes = int(slurm.get("SLURM_NNODES", "1")) > 1
    start = "-".join(slurm.get(name) or "0" for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID"))
    os.environ |= {
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": slurm["SLURM_NTASKS"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        # Only rank 0's is used, and written into the file.
        "MASTER_ADDR": slurm["SLURMD_NODENAME"] if several_nodes else "127.0.0.1",
        "FOVEA_RENDEZVOUS": str(folder / f".rendezvous-{index}-{start}"),
    }


def main(folder: Path, index: int) -> None:
    submission = json.loads((folder / "submission.json").read_text())
    os.environ["FOVEA_COMMAND"] = json.dumps(submission["command"])
    in_slurm = submission["kind"] == "slurm"
    if in_slurm:
        set_ranks(folder, index)
    host, point = SlurmHost() if in_slurm else Host(), submission["points"][index]
    with host.stop.listening(), one_line_errors():
        config = load_frozen(folder / f"{index}.yaml")
        with failures_told(RunFolder(Path(config.runs) / config.study / point), host):
            carry_out(config, point, host)


def carry_out(config: Config, point: str, host: Host) -> None:
    from fovea_detr import experiment

    if rank() == 0:
        start = this_start()
        print(f"[{point}] job {start.get('job')}, restart {start.get('restarts')}, {world_size()} ranks", flush=True)
    try:
        experiment.run(config, point, host)
    finally:
        if rank() == 0:
            Path(os.environ["FOVEA_RENDEZVOUS"]).unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2] if len(sys.argv) > 2 else os.environ["SLURM_ARRAY_TASK_ID"]))
