"""The program of a job, once per task: `python -m fovea_detr.study.job SUBMISSION_FOLDER [POINT'S NUMBER]`.

It reads only what was frozen at submission. It listens for signals before torch is imported, sets the ranks, runs the
point, and asks SLURM to requeue the job when it has to stop.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fovea_detr.cli import importing_torch, one_line_errors
from fovea_detr.config.schema import Config
from fovea_detr.errors import RunFolderError
from fovea_detr.runs.folder import RunFolder, this_start
from fovea_detr.runs.host import Host, process_rank, record_failures
from fovea_detr.study.manifest import Submission, load_frozen
from fovea_detr.study.slurm_host import SlurmHost, world_size

GPU_KEYS = ("gres", "gpus_per_node", "gpus_per_task", "gpus", "gpus-per-node", "gpus-per-task")


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


def main(submission_folder: Path, index: int) -> None:
    submission = Submission.load(submission_folder)
    os.environ["FOVEA_COMMAND"] = json.dumps(submission.command)
    in_slurm = submission.kind == "slurm"
    if in_slurm:
        set_ranks(submission_folder, index)
    point = submission.points[index]
    host = SlurmHost() if in_slurm else Host()
    with host.stop.listening(), one_line_errors():
        config = load_frozen(submission.config_file(point))
        folder = RunFolder(Path(config.runs) / config.study / point)
        refuse_replaced(folder, submission)
        if isinstance(host, SlurmHost):
            host.max_restarts = submission.resources.get("max_restarts")
            host.gpus_asked = gpus_asked(submission.resources)
        with record_failures(folder, host):
            run_and_clean_up(config, point, host, folder)


def gpus_asked(resources: Mapping[str, Any]) -> str:
    """`gres=gpu:4`, of what SLURM was asked for; empty without a GPU."""
    asked = {**resources, **(resources.get("additional_parameters") or {})}
    found = (f"{key}={asked[key]}" for key in GPU_KEYS if asked.get(key))
    return next((text for text in found if "gpu" in text), "")


def refuse_replaced(folder: RunFolder, submission: Submission) -> None:
    """Raise RunFolderError if the folder was removed after the submission, or belongs to a later one."""
    if not folder.path.is_dir():
        raise RunFolderError(
            f"{folder.path}: the folder was removed or moved after its submission; the sweep's command submits it again"
        )
    later = folder.record().get("submission", submission.id)
    if later != submission.id:
        raise RunFolderError(f"{folder.path}: it was submitted again since (submission {later}), so this job ends")


def run_and_clean_up(config: Config, point: str, host: Host, folder: RunFolder) -> None:
    """Run the point, then remove the file of the ranks' rendezvous."""
    with importing_torch():
        from fovea_detr import experiment

    if process_rank() == 0:
        start = this_start()
        print(f"[{point}] job {start.get('job')}, restart {start.get('restarts')}, {world_size()} ranks", flush=True)
    try:
        experiment.run(config, point, host, folder)
    finally:
        if process_rank() == 0:
            Path(os.environ["FOVEA_RENDEZVOUS"]).unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2] if len(sys.argv) > 2 else os.environ["SLURM_ARRAY_TASK_ID"]))
