"""Two system users and one study, on a real SLURM: one submits, the other sees. Needs root, to be two users."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.study.conftest import ROOT, SMALL_JOB, TINY

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

USERS, GROUP = ("fovea-ann", "fovea-bob"), "fovea-lab"


class Person:
    """A user of the group, with the interpreter that other users than root may start."""

    def __init__(self, name: str, home: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.uid, self.gid = pwd.getpwnam(name).pw_uid, grp.getgrnam(GROUP).gr_gid
        self.home = home / name
        self.home.mkdir()
        os.chown(self.home, self.uid, self.gid)
        keep = {key: environment[key] for key in ("PATH", "SLURM_CONF")}
        self.environment = keep | {"HOME": str(self.home), "LOGNAME": name, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self.python = sys.executable
        if self._start("-c", "import hydra").wait() != 0:
            self.python = f"/usr/bin/python3.{sys.version_info[1]}"
            self.environment["PYTHONPATH"] = sysconfig.get_path("purelib")

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        try:
            return subprocess.Popen(
                [self.python, *arguments], cwd=ROOT, env=self.environment, user=self.uid, group=self.gid,
                extra_groups=[], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        except PermissionError:  # the interpreter is in root's home
            return subprocess.Popen(["false"], text=True)

    def sweep(self, runs: Path, *overrides: str) -> subprocess.Popen[str]:
        where = [
            f"runs={runs}",
            f"data.cache={runs.parent / 'cache'}",
            "study=ours",
            "cluster.gpus=1",
            "cluster.cpus=1",
        ]
        return self._start("run.py", "-m", *TINY, *SMALL_JOB, *where, "hydra/launcher=submitit_slurm", *overrides)

    def verb(self, runs: Path, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self._start("-m", "fovea_detr.study", verb, "ours", *arguments, "--runs", str(runs))
        return subprocess.CompletedProcess(process.args, process.wait(120), *process.communicate())


@pytest.fixture
def people(cluster: dict[str, str], tmp_path: Path) -> Iterator[tuple[Person, Person, Path]]:
    """Ann, Bob and a folder of their group."""
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    subprocess.run(["groupadd", "-f", GROUP], check=True)
    for name in USERS:
        subprocess.run(["useradd", "-M", "-N", "-g", GROUP, name], stderr=subprocess.DEVNULL)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)  # pytest's folders are its user's only
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chown(shared, 0, grp.getgrnam(GROUP).gr_gid)
    shared.chmod(0o2775)
    ann, bob = (Person(name, tmp_path, cluster) for name in USERS)
    if ann._start("-c", "import hydra").wait() != 0:
        pytest.skip("no interpreter that other users may start has the packages")
    yield ann, bob, shared / "runs"
    subprocess.run(["scancel", "--user", ",".join(USERS)], env=cluster)


HELD = ("seed=0,1,2", "+cluster.extra.hold=true")


def test_both_submit_at_once_and_every_point_is_submitted_once(
    people: tuple[Person, Person, Path], cluster: dict[str, str]
) -> None:
    ann, bob, runs = people
    both = [person.sweep(runs, *HELD) for person in (ann, bob)]
    answers = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    seen = next(out for out, _ in answers if "nothing to submit" in out)
    assert "3 submitted" in next(out for out, _ in answers if out != seen)
    owner, other = (ann, bob) if f"by {ann.name}" in seen else (bob, ann)
    assert seen.count("queued     job") == seen.count(f"by {owner.name}") == 3
    listed = subprocess.run(["squeue", "-h", "-r", "-o", "%u"], env=cluster, capture_output=True, text=True).stdout
    assert listed.split() == [owner.name] * 3, "no point twice"

    refused = other.verb(runs, "cancel", "seed=1")
    assert refused.returncode == 2
    assert "denied" in refused.stderr
    assert f"(submitted by {owner.name})" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert "3 queued" in other.verb(runs, "status").stdout, "what was not cancelled is not called so"

    assert owner.verb(runs, "cancel", "seed=1").returncode == 0
    assert f"by {owner.name}" in other.verb(runs, "status", "seed=1").stdout
    taken = other.sweep(runs, *HELD).communicate(timeout=200)
    assert "2 queued, 1 submitted" in taken[0] or "1 submitted, 2 queued" in taken[0] or "1 submitted" in taken[0], (
        taken
    )
    for path in [runs / "ours", *(runs / "ours").rglob("*")]:
        if not path.is_symlink() and ".snapshots" not in path.parts:
            assert path.stat().st_mode & 0o020, f"{path} is not the group's"


def test_a_study_that_is_not_the_groups_is_one_line_and_hides_no_other(people: tuple[Person, Person, Path]) -> None:
    ann, bob, runs = people
    assert ann.sweep(runs, *HELD).wait(200) == 0
    (runs / "ours").chmod(0o2755)
    for path in (runs / "ours").rglob("*"):
        path.chmod(path.stat().st_mode & ~0o022)
    refused = bob.sweep(runs, "seed=7")
    _, error = refused.communicate(timeout=200)
    assert refused.returncode == 2
    assert len(error.splitlines()) == 1, error
    assert str(runs / "ours") in error
    (runs / "ours").rename(runs / "hidden")
    (runs / "hidden").chmod(0o700)
    assert bob.sweep(runs, *HELD).wait(200) == 0
    table = bob._start("analysis/collect.py", "--runs", str(runs))
    out, error = table.communicate(timeout=100)
    assert table.returncode == 0, error
    assert "hidden: left out" in error
    assert "seed=2" in out or "queued" in out
