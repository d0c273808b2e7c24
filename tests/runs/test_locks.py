"""The lock of a folder: of one process, whatever is deleted, and where the file system has no locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fovea_detr.errors import RunFolderError
from fovea_detr.runs import locks
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.locks import Lock
from fovea_detr.study.folder import Study
from tests.launch import ROOT, open_to_others
from tests.runs.test_folder import HOLDER, kill, start

PYTHON = shutil.which("python3", path="/usr/local/bin:/usr/bin")
WITHOUT_LOCKS = """
import errno, fcntl, os
def unsupported(*_):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
fcntl.flock = fcntl.lockf = unsupported
"""
FORKS = HOLDER.replace(
    'print("held", flush=True)', "import os; child = os.fork(); child and print(f'held\\n{child}', flush=True)"
)


@pytest.fixture(params=[errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    monkeypatch.setattr(fcntl, "flock", unsupported)


@pytest.mark.parametrize("what", [".lock", ".run"])
def test_removing_a_file_of_the_lock_lets_nobody_in(tmp_path: Path, what: str) -> None:
    holder = start(HOLDER, RunFolder(tmp_path))
    (tmp_path / what).unlink()
    assert not RunFolder(tmp_path).try_lock()
    kill(holder)
    RunFolder(tmp_path).lock()


def test_a_lock_whose_file_was_replaced_while_it_was_taken_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lockf = fcntl.lockf

    def lock_and_lose(file, flags: int) -> None:
        lockf(file, flags)
        monkeypatch.setattr(fcntl, "lockf", lockf)
        (tmp_path / ".lock").unlink()

    lock = Lock(tmp_path, lambda file, flags: fcntl.lockf(file, flags))
    monkeypatch.setattr(fcntl, "lockf", lock_and_lose)
    assert lock.acquire()
    assert lock.is_in_place()


def test_where_folders_cannot_be_locked_a_removed_lock_is_locked_again_or_the_run_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system, where the lock of a folder does not reach other machines."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    run = RunFolder(tmp_path)
    run.lock()
    (tmp_path / ".lock").unlink()
    run.write_state("running")
    blind = "import fcntl\nfcntl.flock = lambda *_: None\n"
    refused = subprocess.run([sys.executable, "-c", blind + HOLDER, str(tmp_path)], capture_output=True, text=True)
    assert "another process is running" in refused.stderr
    (tmp_path / ".lock").unlink()
    taker = start(blind + HOLDER, run)
    with pytest.raises(RunFolderError, match="another process has taken the folder over"):
        run.write_state("running")
    kill(taker)


@pytest.mark.skipif(os.geteuid() != 0 or PYTHON is None, reason="needs a second user, and Python for all users")
def test_a_folder_of_another_user_is_named_with_what_helps(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "fovea_detr", tmp_path / "code" / "fovea_detr", ignore=shutil.ignore_patterns("conf"))
    open_to_others(tmp_path)
    (tmp_path / "study").mkdir(mode=0o755)
    imports = "import sys; from pathlib import Path; from fovea_detr.runs.locks import Lock"
    code = f"{imports}; Lock(Path(sys.argv[1])).acquire()"
    done = subprocess.run(
        [str(PYTHON), "-c", code, str(tmp_path / "study" / "point")],
        cwd=tmp_path / "code",
        user=65534,
        capture_output=True,
        text=True,
    )
    assert f"cannot write there (Permission denied): {tmp_path / 'study'} belongs to root, mode 0755" in done.stderr
    assert f"chmod -R g+rwX {tmp_path / 'study'}" in done.stderr


def test_a_worker_that_outlives_its_process_holds_no_lock(tmp_path: Path) -> None:
    holder = start(FORKS, RunFolder(tmp_path))
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    holder.kill()
    holder.wait()
    try:
        os.kill(child, 0)
        RunFolder(tmp_path).lock(5)
    finally:
        os.kill(child, 9)


@pytest.mark.usefixtures("without_locks")
def test_without_file_locks_one_process_at_a_time_holds_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = start(WITHOUT_LOCKS + HOLDER, RunFolder(tmp_path / "point"))
    assert not RunFolder(tmp_path / "point").try_lock()
    with pytest.raises(RunFolderError, match="another process is running"):
        RunFolder(tmp_path / "point").lock(0.3)
    assert capsys.readouterr().err.count("no file locks here") <= 1, "it is said once"
    kill(holder)
    folder = RunFolder(tmp_path / "point")
    folder.lock()
    folder.write_state("running")
    kept = json.loads((folder.path / ".lock.holder").read_text())
    assert kept["pid"] == os.getpid()
    folder.unlock()
    assert not (folder.path / ".lock.holder").exists()
    with Study(tmp_path).locked() as lock:
        assert not Lock(tmp_path).acquire()
        assert lock.is_in_place()


@pytest.mark.usefixtures("without_locks")
def test_without_file_locks_a_holder_on_another_machine_counts_until_it_is_silent(tmp_path: Path) -> None:
    path = tmp_path / ".lock.holder"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "x"}))
    assert not Lock(tmp_path).acquire()
    before = time.time() - locks.STALE_SECONDS - 5
    os.utime(path, (before, before))
    lock = Lock(tmp_path)
    assert lock.acquire()
    assert not Lock(tmp_path).acquire()
    lock.release()


@pytest.mark.usefixtures("without_locks")
def test_without_file_locks_a_living_holder_renews_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    lock = Lock(tmp_path)
    assert lock.acquire()
    os.utime(tmp_path / ".lock.holder", (1, 1))
    end = time.monotonic() + 10
    while (tmp_path / ".lock.holder").stat().st_mtime < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    lock.release()
