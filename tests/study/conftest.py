"""A real SLURM for the tests marked `slurm`, up once a session and taken down at its end; and studies on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fovea_detr.config.schema import CONF_DIR
from fovea_detr.runs.folder import RunFolder
from fovea_detr.study import queue
from fovea_detr.study.folder import Study
from fovea_detr.study.manifest import Submission
from fovea_detr.study.standing import PointStatus

ROOT = CONF_DIR.parent
CLUSTER = Path(__file__).parent / "cluster.sh"
TINY = ["experiment=tiny", "data.train_images=64", "data.val_images=16", "schedule.batch_size=2"]
SMALL_JOB = ["device=cpu", "threads=1", "cluster.mem_gb=4"]
FAULTS = Path(__file__).parent / "faults"


@pytest.fixture(scope="session")
def cluster() -> Iterator[dict[str, str]]:
    """A cluster of two nodes in a folder of its own -> the environment in which commands find it."""
    yield from start_cluster(0)


@pytest.fixture(scope="session")
def bare_cluster() -> Iterator[dict[str, str]]:
    """A small cluster: no accounting, jobs are forgotten within seconds, arrays of at most 4."""
    extra = "MinJobAge=2\nMaxArraySize=4"
    yield from start_cluster(100, FOVEA_SLURM_ACCOUNTING="off", FOVEA_SLURM_EXTRA=extra)


def start_cluster(port: int, **settings: str) -> Iterator[dict[str, str]]:
    """A process of its own takes the cluster down if this one is killed. port: added to the first one."""
    if not shutil.which("sbatch") and (not shutil.which("apt-get") or os.geteuid() != 0):
        pytest.skip("SLURM is not installed, and can only be installed by root with apt-get")
    folder = tempfile.mkdtemp(prefix="fs", dir="/tmp")  # a short name: the path of a socket is limited
    os.chmod(folder, 0o755)  # other users' commands read slurm.conf
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    settings |= {"FOVEA_SLURM_DIR": folder, "FOVEA_SLURM_NODES": "2", "FOVEA_SLURM_PORT": str(free_ports() + port)}
    environment |= settings | {"SLURM_CONF": f"{folder}/slurm.conf"}
    watch = 'while kill -0 "$1" 2>/dev/null; do sleep 1; done; [ ! -e "$2" ] || exec bash "$0" down'
    command = ["bash", "-c", watch, str(CLUSTER), str(os.getpid()), folder]
    guard = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        subprocess.run(["bash", str(CLUSTER), "up"], env=environment, check=True, timeout=600)
        yield environment
    finally:
        subprocess.run(["bash", str(CLUSTER), "down"], env=environment, timeout=120)
        guard.kill()
        guard.wait()


def free_ports() -> int:
    """The first of the ports of a cluster; another may be up here. Below 32768: Linux gives those above to clients."""
    return 12000 + os.getpid() % 100 * 200


class ClusterStudy:
    """A study on the test cluster: its commands as a user types them, and the states of its points."""

    def __init__(self, folder: Path, name: str, environment: dict[str, str], code: Path = ROOT) -> None:
        self.name = name
        self.runs = folder / "runs"
        self.cache = folder / "cache"
        self.environment = environment
        self.code = code
        self.study = Study(self.runs / name)
        self.path = self.study.folder
        self.manifest = self.path / "manifest.jsonl"

    def sweep(self, *overrides: str, gpus: int = 2) -> subprocess.CompletedProcess[str]:
        """`python run.py -m ... hydra/launcher=submitit_slurm` to its end."""
        return self._run(self.sweep_command(*overrides, gpus=gpus), self.code)

    def start_sweep(self, *overrides: str) -> subprocess.Popen[str]:
        """The same in a session of its own, without waiting for it."""
        pipe = subprocess.DEVNULL
        command, environment = self.sweep_command(*overrides), self.environment
        return subprocess.Popen(
            command, cwd=self.code, env=environment, text=True, stdout=pipe, stderr=pipe, start_new_session=True
        )

    def sweep_command(self, *overrides: str, gpus: int = 2) -> list[str]:
        where = [f"study={self.name}", f"runs={self.runs}", f"data.cache={self.cache}"]
        size = [f"cluster.gpus={gpus}", f"cluster.cpus={gpus}"]
        command = [sys.executable, str(self.code / "run.py"), "-m", *TINY, *SMALL_JOB, *where, *size]
        return [*command, "hydra/launcher=submitit_slurm", *overrides]

    def verb(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`python -m fovea_detr.study VERB STUDY ...`."""
        command = [sys.executable, "-m", "fovea_detr.study", verb, self.name, *arguments, "--runs", str(self.runs)]
        return self._run(command, self.code)

    def slurm(self, *command: str) -> str:
        done = self._run(command, self.code)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _run(self, command: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=cwd, env=self.environment, text=True, capture_output=True, timeout=300)

    def submissions(self) -> list[Submission]:
        return self.study.submissions()

    def points(self) -> list[str]:
        return [point for submission in self.submissions() for point in submission.points]

    def folder(self, point: str | None = None) -> RunFolder:
        """The run folder of a point, or of the only one."""
        return RunFolder(self.path / (point or self.points()[0]))

    def states(self, monkeypatch: pytest.MonkeyPatch) -> list[PointStatus]:
        monkeypatch.setenv("SLURM_CONF", self.environment["SLURM_CONF"])
        return self.study.current_states(sorted(set(self.points())))

    def wait(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 300) -> dict[str, PointStatus]:
        """Until no point is queued or running, and no job is left."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            states = self.states(monkeypatch)
            ended = not any(status.standing.is_live for status in states)
            names = ",".join(submission.name for submission in self.submissions())
            gone = ended and not self.slurm("squeue", "-h", "--name", names)
            if gone and not any(job.is_live for job in self.accounts().values()):  # the accounts come a little later
                return {status.point: status for status in states}
            time.sleep(0.5)
        raise AssertionError(f"not finished after {seconds} s: {[(s.point, s.state, s.slurm) for s in states]}")

    def wait_for_epochs(self, count: int, seconds: float = 180) -> None:
        """Until the only point has finished this many epochs."""
        end = time.monotonic() + seconds
        while len(self.folder().history()) < count:
            assert time.monotonic() < end, f"no {count} epochs in {seconds} s: {self.log()}"
            time.sleep(0.1)

    def log(self) -> str:
        files = sorted(self.path.glob(".submissions/*/*_log.out"))
        return "\n".join(f"==> {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)

    def accounts(self) -> dict[str, queue.Job]:
        """sacct's latest state of every job of the study."""
        ids = ",".join(s.job for s in self.submissions() if s.job)
        answer = self.slurm(*queue.SACCT, "-j", ids)
        return {job.id: job for job in queue.parse_sacct(answer)}


@pytest.fixture
def study(cluster: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ClusterStudy]:
    """A new study; its jobs are cancelled at the end."""
    new = ClusterStudy(tmp_path, request.node.originalname.removeprefix("test_")[:30], cluster)
    yield new
    names = ",".join(submission.name for submission in new.submissions())
    if names:
        new.slurm("scancel", "--name", names)
