"""Two system users of one group on a test cluster. Needs root, to be two users."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.study.conftest import ROOT, SMALL_JOB, TINY

USERS, GROUP = ("fovea-ann", "fovea-bob"), "fovea-lab"


class Person:
    """A user of the group, with the interpreter that other users than root may start."""

    def __init__(self, name: str, home: Path, environment: Mapping[str, str], code: Path = ROOT) -> None:
        self.name = name
        self.code = code
        self.uid, self.gid = pwd.getpwnam(name).pw_uid, grp.getgrnam(GROUP).gr_gid
        self.home = home / name
        self.home.mkdir()
        os.chown(self.home, self.uid, self.gid)
        keep = {key: environment[key] for key in ("PATH", "SLURM_CONF")}
        self.environment = keep | {"HOME": str(self.home), "LOGNAME": name, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self.python = sys.executable
        if self.start_python("-c", "import hydra").wait() != 0:
            self.python = f"/usr/bin/python3.{sys.version_info[1]}"
            self.environment["PYTHONPATH"] = sysconfig.get_path("purelib")
        self.has_packages = self.start_python("-c", "import hydra").wait() == 0

    def start_python(self, *arguments: str) -> subprocess.Popen[str]:
        return self.start(self.python, *arguments)

    def start(self, *command: str) -> subprocess.Popen[str]:
        try:
            return subprocess.Popen(
                command, cwd=self.code, env=self.environment, user=self.uid, group=self.gid,
                extra_groups=[], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        except PermissionError:  # the interpreter is in root's home
            return subprocess.Popen(["false"], text=True)

    def sweep(self, runs: Path, *overrides: str, study: str = "ours") -> subprocess.Popen[str]:
        return self.start_python(*sweep_command(runs, study, *overrides))

    def verb(self, runs: Path, verb: str, *arguments: str, study: str = "ours") -> subprocess.CompletedProcess[str]:
        process = self.start_python("-m", "fovea_detr.study", verb, study, *arguments, "--runs", str(runs))
        return finished(process)


def finished(process: subprocess.Popen[str], seconds: float = 300) -> subprocess.CompletedProcess[str]:
    out, error = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def sweep_command(runs: Path, study: str, *overrides: str) -> list[str]:
    """The arguments of Python for a sweep of points with one process each."""
    where = [f"runs={runs}", f"data.cache={runs.parent / 'cache'}", f"study={study}"]
    size = ["cluster.gpus=1", "cluster.cpus=1", "hydra/launcher=submitit_slurm"]
    return ["run.py", "-m", *TINY, *SMALL_JOB, *where, *size, *overrides]


def make_users(shared: Path) -> None:
    """Create the users, their group, and a folder of the group, which others can reach."""
    subprocess.run(["groupadd", "-f", GROUP], check=True)
    for name in USERS:
        subprocess.run(["useradd", "-M", "-N", "-g", GROUP, name], stderr=subprocess.DEVNULL)
    shared.mkdir(exist_ok=True)
    os.chown(shared, 0, grp.getgrnam(GROUP).gr_gid)
    shared.chmod(0o2775)


def cancel_all(environment: Mapping[str, str], users: Sequence[str] = USERS) -> None:
    for name in users:
        subprocess.run(["scancel", "--user", name], env=environment, check=True)
