"""The faults of benchmarks/soak.py: each is done to one point, or to the cluster, disk or code of all points."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fovea_detr.runs.folder import RunFolder
from fovea_detr.study.folder import Study
from fovea_detr.study.manifest import Submission
from fovea_detr.study.names import matching
from tests.study.conftest import CLUSTER
from tests.study.people import Person, finished, sweep_command

LENGTH = ["schedule.epochs=6", "evaluation.every=100", "cluster.retries=1", "cluster.mem_gb=9"]  # four at a time
LEARNING_RATES = ("1.5e-3", "1.0e-3")  # conf/schedule/tiny.yaml has the first one


@dataclass(frozen=True)
class Target:
    """A point: of a study, whose owner is one of the users, with a seed."""

    study: Study
    owner: Person
    seed: int

    @property
    def name(self) -> str:
        return matching(self.study.points(), f"seed={self.seed}")[0]

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.study.folder / self.name)

    @property
    def submission(self) -> Submission:
        """The latest one."""
        return next(one for one in reversed(self.study.submissions()) if self.name in one.points)

    @property
    def job(self) -> str:
        return self.submission.job_of(self.name) or ""


class Lab:
    """Two users, their shared folder, their checkout, their studies, and the cluster."""

    def __init__(
        self, base: Path, environment: Mapping[str, str], people: list[Person], random: Random, seeds: int
    ) -> None:
        self.base, self.environment, self.people, self.random = base, environment, people, random
        self.shared, self.runs, self.code = base / "shared", base / "shared/runs", people[0].code
        self.seeds = ",".join(map(str, range(seeds)))
        studies = {person: Study(self.runs / person.name.removeprefix("fovea-")) for person in people}
        self.targets = [Target(study, person, n) for person, study in studies.items() for n in range(seeds)]
        self.schedule = self.code / "conf/schedule/tiny.yaml"
        self.has_accounting = True
        self.moved = 0

    def set_learning_rate(self, rate: str) -> None:
        text = self.schedule.read_text()
        for other in LEARNING_RATES:
            text = text.replace(f"lr: {other}", f"lr: {rate}").replace(f"lr_backbone: {other}", f"lr_backbone: {rate}")
        self.schedule.write_text(text)

    def cluster(self, *words: str) -> None:
        subprocess.run(["bash", str(CLUSTER), *words], env=self.environment, check=True, timeout=90)

    def start_controller(self) -> None:
        """It cannot start without accounting if it was killed before it had stored what the accounting said."""
        try:
            self.cluster("start", "slurmctld")
        except subprocess.CalledProcessError:
            assert not self.has_accounting
            self.start_accounting()
            self.cluster("start", "slurmctld")

    def start_accounting(self) -> None:
        if not self.has_accounting:
            self.cluster("start", "slurmdbd")
            self.has_accounting = True

    def resume(self) -> None:
        """As an administrator does: nodes that SLURM drained (two jobs of one id), jobs that it holds (not started)."""
        if self.ask_slurm("sinfo", "-h", "-t", "drain,down", "-o", "%n"):
            self.ask_slurm("scontrol", "update", "nodename=ALL", "state=resume")
        for line in self.ask_slurm("squeue", "-h", "-r", "-t", "pending", "-o", "%i %r").splitlines():
            if line.endswith("requeued held"):
                self.ask_slurm("scontrol", "release", line.split()[0])

    def daemon(self, name: str) -> int:
        """Its pid; it writes the file anew after its start, and the file is empty for a moment."""
        file = Path(self.environment["FOVEA_SLURM_DIR"], "run", f"{name}.pid")
        while not (text := file.read_text().strip()):
            time.sleep(0.05)
        return int(text)

    def ask_slurm(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, text=True, capture_output=True, timeout=90).stdout

    def queued(self, names: set[str]) -> str:
        """The queue's lines of the jobs with these names; asked again until the controller answers."""
        command = ["squeue", "-h", "-r", "-t", "all", "-o", "%i %j %T %r", "--name", ",".join(sorted(names))]
        while (done := subprocess.run(command, env=self.environment, text=True, capture_output=True)).returncode:
            time.sleep(1)
        ended = re.compile(r"\S+ \S+ (COMPLETED|CANCELLED|FAILED|TIMEOUT|NODE_FAIL|OUT_OF_MEMORY|BOOT_FAIL)\b")
        return "\n".join(line for line in done.stdout.splitlines() if not ended.match(line))

    def person_types(self, person: Person, *command: str) -> str:
        """A command that must not end with a traceback, nor with a job of somebody else."""
        before = self.foreign_jobs()
        done = finished(person.start(*command))
        assert "Traceback" not in done.stderr, f"{command}: {done.stderr}"
        lost = before - self.foreign_jobs()
        assert not lost, f"{command} of {person.name} has ended {lost}, which no study has submitted"
        return done.stdout + done.stderr

    def sweep(self, study: Study, person: Person, seeds: str | None = None) -> str:
        words = (*LENGTH, f"seed={seeds or self.seeds}")
        return self.person_types(person, person.python, *sweep_command(self.runs, study.folder.name, *words))

    def verb(self, study: Study, person: Person, verb: str, *points: str) -> str:
        words = ("-m", "fovea_detr.study", verb, study.folder.name, *points, "--runs", str(self.runs))
        return self.person_types(person, person.python, *words)

    def foreign_jobs(self) -> set[str]:
        """Jobs of the same users that no study has submitted; they wait for ever."""
        return set(self.ask_slurm("squeue", "-h", "--name", "theirs", "-o", "%F").split())

    def submit_foreign_jobs(self, up_to: int) -> None:
        """Until one has this id; at least one."""
        for _ in range(max(1, min(up_to, 60))):
            words = ("--parsable", "--hold", "--array=0-15", "-J", "theirs", "-o", "/dev/null", "--wrap", "sleep 9")
            id_ = finished(self.random.choice(self.people).start("sbatch", *words)).stdout.strip()
            if not id_.isdigit() or int(id_) >= up_to:
                return


def process_of(target: Target, words: str) -> int | None:
    """The pid of the point's process of this command line, in its latest job; None if there is none."""
    submission = target.submission
    wanted = {f"SLURM_JOB_NAME={submission.name}", f"SLURM_ARRAY_TASK_ID={submission.points.index(target.name)}"}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (process / "cmdline").read_text().replace("\0", " ")
            is_it = words in line and "srun" not in line.split(" ")[0]
            if is_it and wanted <= set((process / "environ").read_text().split("\0")):
                return int(process.name)
    return None


def kill(pid: int | None) -> bool:
    if pid is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


# ---- of one point: whether it could be done ------------------------------------------------------------------------


def kill_rank(lab: Lab, target: Target) -> bool:  # noqa: ARG001
    return kill(process_of(target, "fovea_detr.study.job"))


def kill_batch(lab: Lab, target: Target) -> bool:  # noqa: ARG001
    return kill(process_of(target, "slurm_script"))


def scancel(lab: Lab, target: Target) -> bool:
    """By the study's command, or past it."""
    if not is_live(lab, target):
        return False
    if lab.random.random() < 0.5:
        return "cancelled " in lab.verb(target.study, lab.random.choice(lab.people), "cancel", f"seed={target.seed}")
    lab.ask_slurm("scancel", target.job)
    return True


def requeue(lab: Lab, target: Target) -> bool:
    if not is_live(lab, target):
        return False
    lab.ask_slurm("scontrol", "requeue", target.job)
    return True


def is_live(lab: Lab, target: Target) -> bool:
    """Whether the job of this id is the point's."""
    return lab.ask_slurm("squeue", "-h", "-j", target.job, "-o", "%j").strip() == target.submission.name


def delete_folder(lab: Lab, target: Target) -> bool:  # noqa: ARG001
    shutil.rmtree(target.folder.path, ignore_errors=True)
    return True


def move_folder(lab: Lab, target: Target) -> bool:
    if not target.folder.path.is_dir():
        return False
    lab.moved += 1
    target.folder.path.rename(lab.shared / f"moved-{lab.moved}")
    return True


# ---- of all points -------------------------------------------------------------------------------------------------


def kill_slurmd(lab: Lab, target: Target) -> bool:  # noqa: ARG001
    node = lab.random.choice(["fovea0", "fovea1"])
    kill(lab.daemon(node))
    time.sleep(lab.random.uniform(0, 3))
    lab.cluster("start", node)
    return True


def kill_slurmctld(lab: Lab, target: Target) -> bool:  # noqa: ARG001
    kill(lab.daemon("slurmctld"))
    time.sleep(lab.random.uniform(0, 3))
    lab.start_controller()
    return True


def restart_ids(lab: Lab, target: Target) -> bool:
    """The controller loses its state; the ids of our jobs are those of others then."""
    last = max((int(one.job) for one in target.study.submissions() if one.job), default=0)
    lab.cluster("stop", "slurmctld")
    for file in Path(lab.environment["FOVEA_SLURM_DIR"], "spool/slurmctld").glob("job_state*"):
        file.unlink()
    lab.start_controller()
    lab.submit_foreign_jobs(last)
    return True


def accounting(lab: Lab, target: Target) -> bool:  # noqa: ARG001
    """Off if it is on, and on if it is off."""
    if lab.has_accounting:
        lab.cluster("stop", "slurmdbd")
        lab.has_accounting = False
    else:
        lab.start_accounting()
    return True


def full_disk(lab: Lab, target: Target) -> bool:  # noqa: ARG001
    if not os.path.ismount(lab.shared):
        return False
    filler = lab.shared / "filler"
    with suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(1 << 20))
    time.sleep(lab.random.uniform(2, 5))
    filler.unlink()
    return True


def edit_conf(lab: Lab, target: Target) -> bool:  # noqa: ARG001
    lab.set_learning_rate(lab.random.choice(LEARNING_RATES))
    return True


def resubmit(lab: Lab, target: Target) -> bool:
    """The sweep's command or a relaunch, by either user."""
    person = lab.random.choice(lab.people)
    if lab.random.random() < 0.3:
        lab.verb(target.study, person, "relaunch")
    else:
        lab.sweep(target.study, person)
    return True


Fault = Callable[[Lab, Target], bool]
OF_A_POINT: tuple[Fault, ...] = (kill_rank, kill_batch, scancel, requeue, delete_folder, move_folder)
OF_ALL: tuple[Fault, ...] = (
    kill_slurmd, kill_slurmctld, restart_ids, accounting, full_disk, edit_conf, resubmit, resubmit, resubmit,
)  # fmt: skip

# What a state's reason says, and the faults that make it true.
ANY_KILL = {"kill_rank", "kill_batch", "kill_slurmd", "kill_slurmctld", "restart_ids"}
TRUE_REASONS: dict[str, set[str]] = {
    r"^cancelled (by|cancelled in)": {"scancel"},
    r"^cancelled requeued, then cancelled or lost": {"scancel", "restart_ids", "kill_slurmctld"},
    r"No space left|Disk quota|disk is full": {"full_disk"},
    r"removed|moved|no folder|no longer this run's|no file of a run": {"delete_folder", "move_folder"},
    r"submitted again since": {"resubmit"},
    r"^failed .*rank lost": {"kill_rank", "kill_batch"},
    r"^(failed|lost) .*(Killed|SIGKILL|signal 9|exit code 137|exit code 9|0:9)": {"kill_rank", "kill_batch"},
    r"^lost .*(does not know its job)": {"restart_ids", "kill_slurmctld"},
    r"^preempted": {"requeue", "scancel", *ANY_KILL},
}
