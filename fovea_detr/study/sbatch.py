"""One array job for some points of a study: its sbatch script (written by submitit), and sbatch itself.

Everything that a job needs is on disk before sbatch: after it, the job depends on no other process of ours.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import submitit

from fovea_detr.config.schema import Config
from fovea_detr.errors import ConfigError
from fovea_detr.study.manifest import Submission
from fovea_detr.study.queue import SlurmError, command
from fovea_detr.study.snapshot import module

SUBMIT_SECONDS = 300.0  # for a busy controller; whether it took the job is known only when sbatch ends


class Executor(submitit.SlurmExecutor):
    """submitit's, used only for the text of the script: a dry run needs no SLURM on the machine."""

    @classmethod
    def affinity(cls) -> int:
        return 2


def resources(config: Config, launcher: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked of SLURM: the launcher's parameters, and the cluster's where those are not set. ConfigError.

    `launcher`: hydra.launcher, resolved. The number of points and the names of folders are not part of it.
    """
    cluster = config.cluster
    asked = {key: value for key, value in launcher.items() if value is not None and key not in NOT_ASKED}
    asked.setdefault("timeout_min", max(1, round(cluster.hours * 60)))
    asked.setdefault("cpus_per_task", max(1, cluster.cpus // cluster.gpus))
    asked.setdefault("signal_delay_s", round(cluster.signal_minutes * 60))
    if config.device != "cpu" and "gpus_per_node" not in asked:
        asked.setdefault("gres", f"gpu:{cluster.gpus}")
    _refuse_contradictions(config, asked)
    mail = {"mail-user": cluster.mail, "mail-type": "END,FAIL,ARRAY_TASKS"} if cluster.mail else {}
    extra = {"requeue": True, **mail, **cluster.extra, **asked.get("additional_parameters", {})}
    if extra["requeue"] is False:
        extra["no-requeue"] = True
    extra = {key: value for key, value in extra.items() if value is not False}  # an option without a value, not given
    setup = [*cluster.setup, *asked.get("setup", [])]
    asked |= {"additional_parameters": extra, "setup": setup, "python": cluster.python}
    most = launcher.get("max_num_timeout") or cluster.max_restarts  # submitit's name; 0 is its default
    return asked | {"retries": cluster.retries, "local_code": cluster.local_code, "max_restarts": most}


NOT_ASKED = {"_target_", "submitit_folder", "name", "max_num_timeout", "wait", "dry_run"}
OURS = ("python", "setup", "retries", "local_code", "max_restarts")  # no parameters of submitit


def _refuse_contradictions(config: Config, asked: Mapping[str, Any]) -> None:
    gpus, ours = asked.get("gpus_per_node"), config.cluster.gpus
    if gpus not in (None, ours):
        raise ConfigError(
            f"hydra.launcher.gpus_per_node={gpus} contradicts cluster.gpus={ours}: write cluster.gpus={gpus}; GPUs, "
            "processes and CPUs follow from it"
        )
    if asked["timeout_min"] * 60 <= asked["signal_delay_s"]:
        raise ConfigError(
            f"a time limit of {asked['timeout_min']} min is not longer than the {asked['signal_delay_s']} s before its "
            "end at which the run saves: it would be requeued for ever; raise cluster.hours, or lower "
            "cluster.signal_minutes"
        )


def refuse_patterns(folder: Path) -> None:
    """Raise ConfigError for a study whose path SLURM would expand: its logs would go elsewhere."""
    if "%" in str(folder):
        raise ConfigError(
            f"{folder}: SLURM replaces % in the names of logs; choose study=NAME and runs=FOLDER without it"
        )


def script(submission: Submission) -> str:
    """The sbatch script of a submission."""
    asked = {key: value for key, value in submission.resources.items() if key not in OURS}
    interpreter = submission.resources.get("python") or shlex.quote(sys.executable)
    code, folder = Path(submission.snapshot), shlex.quote(str(submission.folder))
    setup = [*report(submission, interpreter), *submission.resources.get("setup", []), *job_setup(submission)]
    asked |= {"name": submission.name, "setup": setup}
    executor = Executor(folder=submission.folder)
    executor.update_parameters(**executor._convert_parameters(asked))
    executor.parameters["map_count"] = len(submission.points)
    return executor._make_submission_file_text(f"{interpreter} -u -m {module(code, 'job')} {folder}", uid="")


def report(submission: Submission, interpreter: str) -> list[str]:
    """The first lines of the batch script: it leaves its exit code in a file, however it ends but by a kill."""
    folder = shlex.quote(str(submission.folder))
    end = 'code=$?; echo $code >"$exit_file"'
    if submission.resources.get("retries"):
        end += f"; [ $code = 0 ] || {interpreter} -m fovea_detr.study.retry {folder} $SLURM_ARRAY_TASK_ID"
    if submission.resources.get("local_code"):
        end += f"; cd /; {NODES} rm -rf {LOCAL_CODE}"
    return [
        f'exit_file={folder}/$SLURM_ARRAY_TASK_ID.exit; rm -f "$exit_file"',
        f"trap {shlex.quote(end)} EXIT  # how it ended, for clusters without accounting",
    ]


LOCAL_CODE = '"${TMPDIR:-/tmp}/fovea-$SLURM_JOB_ID"'
NODES = 'srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1'


def job_setup(submission: Submission) -> list[str]:
    """Shell lines before srun, in the batch script. The last ones, so that no `module load` hides our code."""
    code = shlex.quote(submission.snapshot)
    lines = [
        "export SLURM_KILL_BAD_EXIT=1  # the failure of one task ends all",
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not inherit it since SLURM 22.05",
        "trap : USR2 TERM  # only the tasks handle them: this shell would exit, and the job with it",
    ]
    if submission.resources.get("local_code"):
        copy = f"mkdir -p {LOCAL_CODE} && cp -a {code}/. {LOCAL_CODE}"
        lines.append(f"{NODES} sh -c {shlex.quote(copy)} || exit 1  # the code as submitted, on each node's disk")
        code = LOCAL_CODE
    lines.append(f"cd {code} || exit 1  # the code as submitted, not the checkout")
    return [*lines, f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}"]


def send(submission: Submission, lock: int) -> str:
    """sbatch -> the array's id. lock: of the study's lock, which sbatch keeps if we are killed."""
    path = submission.folder / "submit.sh"
    path.write_text(script(submission))
    answer = command(["sbatch", str(path)], pass_fds=[lock], seconds=SUBMIT_SECONDS)
    match = re.search(r"Submitted batch job (\d+)", answer)
    if match is None:
        raise SlurmError(f"sbatch answers {answer.strip()!r}, which names no job")
    return match[1]
