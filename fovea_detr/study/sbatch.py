"""One array job for some points of a study: its sbatch script (written by submitit), and sbatch itself.

Everything that a job needs is on disk before sbatch: after it, the job depends on no other process of ours.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import submitit

from fovea_detr.config.schema import Config
from fovea_detr.study.manifest import Submission
from fovea_detr.study.queue import SlurmError, command
from fovea_detr.study.snapshot import module

SUBMIT_SECONDS = 300.0  # for a busy controller; whether it took the job is known only when sbatch ends


class Executor(submitit.SlurmExecutor):
    """submitit's, used only for the text of the script: a dry run needs no SLURM on the machine."""

    @classmethod
    def affinity(cls) -> int:
        return 2


def resources(config: Config, launcher: dict[str, Any]) -> dict[str, Any]:
    """What is asked of SLURM: the launcher's parameters, and the cluster's where those are not set.

    `launcher`: hydra.launcher, resolved. The number of points and the names of folders are not part of it.
    """
    cluster = config.cluster
    asked = {key: value for key, value in launcher.items() if value is not None and key not in NOT_ASKED}
    asked.setdefault("timeout_min", max(1, round(cluster.hours * 60)))
    asked.setdefault("cpus_per_task", max(1, cluster.cpus // cluster.gpus))
    asked.setdefault("signal_delay_s", round(cluster.signal_minutes * 60))
    if config.device != "cpu":
        asked.setdefault("gres", f"gpu:{cluster.gpus}")
    mail = {"mail-user": cluster.mail, "mail-type": "END,FAIL"} if cluster.mail else {}
    extra = {"requeue": True, **mail, **cluster.extra, **asked.get("additional_parameters", {})}
    setup = [*cluster.setup, *asked.get("setup", [])]
    most = launcher.get("max_num_timeout") or cluster.max_restarts  # submitit's name; 0 is its default
    return {**asked, "additional_parameters": extra, "setup": setup, "python": cluster.python, "max_restarts": most}


NOT_ASKED = {"_target_", "submitit_folder", "name", "max_num_timeout", "wait", "dry_run"}


def script(submission: Submission) -> str:
    """The sbatch script of a submission."""
    asked = dict(submission.resources)
    python, setup = asked.pop("python", None), asked.pop("setup", [])
    asked.pop("max_restarts", None)  # the job counts
    asked |= {"name": submission.name, "setup": [*setup, *job_setup(Path(submission.snapshot))]}
    executor = Executor(folder=submission.folder)
    executor.update_parameters(**executor._convert_parameters(asked))
    executor.parameters["map_count"] = len(submission.points)
    interpreter = python or shlex.quote(sys.executable)
    program = module(Path(submission.snapshot), "job")
    job = f"{interpreter} -u -m {program} {shlex.quote(str(submission.folder))}"
    return executor._make_submission_file_text(job, uid="")


def job_setup(snapshot: Path) -> list[str]:
    """Shell lines before srun, in the batch script. The last ones, so that no `module load` hides our code."""
    return [
        "export SLURM_KILL_BAD_EXIT=1  # the failure of one task ends all",
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not inherit it since SLURM 22.05",
        "trap : USR2 TERM  # only the tasks handle them: this shell would exit, and the job with it",
        f"cd {shlex.quote(str(snapshot))} || exit 1  # the code as submitted, not the checkout",
        f"export PYTHONPATH={shlex.quote(str(snapshot))}${{PYTHONPATH:+:$PYTHONPATH}}",
    ]


def send(submission: Submission, lock: int) -> str:
    """sbatch -> the array's id. lock: of the study's lock, which sbatch keeps if we are killed."""
    path = submission.folder / "submit.sh"
    path.write_text(script(submission))
    answer = command(["sbatch", str(path)], pass_fds=[lock], seconds=SUBMIT_SECONDS)
    match = re.search(r"Submitted batch job (\d+)", answer)
    if match is None:
        raise SlurmError(f"sbatch answers {answer.strip()!r}, which names no job")
    return match[1]
