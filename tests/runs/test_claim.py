"""A run writes into the folder that it has claimed, or nowhere; its checkpoints are its own."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fovea_detr.config.schema import Config
from fovea_detr.errors import RunFolderError
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.host import record_failure
from fovea_detr.runs.locks import Lock
from fovea_detr.training import checkpoint
from fovea_detr.training.tracking import Tracking
from tests.launch import only_folder, run, run_well, start, wait_for

WRITERS: dict[str, Callable[[RunFolder], object]] = {
    "config": lambda run: run.write_config("seed: 0\n"),
    "provenance": lambda run: run.write_provenance({}),
    "split": lambda run: run.write_split({}),
    "state": lambda run: run.write_state("running"),
    "history": lambda run: run.write_history([{"epoch": 1}]),
    "result": lambda run: run.write_result({}),
    "predictions": lambda run: run.write_predictions([]),
    "log": lambda run: run.log("a line"),
    "checkpoint": lambda run: checkpoint.save(run, {"model": {}}),
    "sample": lambda run: run.write_inside("samples", "1.jpg", lambda file: file.write(b"a picture")),
    "tracker": lambda run: run.write_tracker_ids({"wandb": "1"}),
    "tensorboard": lambda run: Tracking(Config(tracker="tensorboard"), run, print).send([]),
}


def removed(path: Path) -> None:
    shutil.rmtree(path)


def moved(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def replaced(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def emptied(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def of_another_run(path: Path) -> None:
    (path / ".run").write_text("0123456789abcdef\n")


@pytest.mark.parametrize("lose", [removed, moved, replaced, emptied, of_another_run])
@pytest.mark.parametrize("writer", WRITERS)
def test_no_writer_writes_into_a_folder_that_is_no_longer_its_own(
    tmp_path: Path, writer: str, lose: Callable[[Path], None]
) -> None:
    run = RunFolder(tmp_path / "study" / "point")
    run.lock()
    run.write_state("running")
    lose(run.path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunFolderError, match=r"removed|no longer this run's") as refused:
        WRITERS[writer](run)
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("writer", [name for name in WRITERS if name != "tensorboard"])  # its library writes by path
def test_a_writer_creates_no_folder_even_if_it_has_just_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    run = RunFolder(tmp_path / "point")
    run.lock()
    claimed = run.claimed
    assert claimed is not None
    check = claimed.check
    monkeypatch.setattr(claimed, "check", lambda: (check(), shutil.rmtree(run.path, ignore_errors=True)))
    with pytest.raises((RunFolderError, FileNotFoundError)):
        WRITERS[writer](run)
    assert not run.path.exists()


def test_a_failure_is_not_written_into_the_folder_of_another_process(tmp_path: Path) -> None:
    """Neither by a rank whose folder was taken over, nor by a process that has not claimed it."""
    old = RunFolder(tmp_path / "point")
    old.lock()
    shutil.rmtree(old.path)
    new = subprocess.Popen([sys.executable, "-c", HOLDER, str(old.path)], stdout=subprocess.PIPE, text=True)
    assert new.stdout is not None
    assert new.stdout.readline() == "held\n"
    for folder in (old, RunFolder(old.path)):
        record_failure(folder, ValueError("Connection closed by peer"))
    assert old.record()["state"] == "running"
    new.kill()
    new.communicate()


HOLDER = """
import sys, time
from fovea_detr.runs.folder import RunFolder
folder = RunFolder(sys.argv[1])
folder.lock()
folder.write_state("running")
print("held", flush=True)
time.sleep(60)
"""


def test_a_new_file_is_for_the_group_what_its_folder_is(tmp_path: Path) -> None:
    shared, before = tmp_path / "shared", os.umask(0o022)
    try:
        shared.mkdir()
        shared.chmod(0o2775)
        run = RunFolder(shared / "study" / "point")
        run.lock()
        for writer in WRITERS.values():
            writer(run)
        assert Lock(shared).acquire()
        private = RunFolder(tmp_path / "private")
        private.write_state("queued")
    finally:
        os.umask(before)
    for path in shared.rglob("*"):
        mode = path.stat().st_mode
        assert mode & stat.S_IWGRP, path
        assert not mode & stat.S_IWOTH, path
        assert not path.is_dir() or mode & stat.S_ISGID, path
    assert not any(path.stat().st_mode & stat.S_IWGRP for path in private.path.rglob("*"))


# ---- real runs -------------------------------------------------------------------------------------------------------

SHORT = ("experiment=tiny", "data.train_images=32", "data.val_images=8", "evaluation.timed_images=2", "threads=1")
ENDLESS = (*SHORT, "schedule.epochs=2000", "evaluation.every=2000", "checkpoint.minutes=0.001")


def has_checkpoint(runs: Path) -> bool:
    return any(runs.glob("tiny/*/checkpoint_before.pt"))


@pytest.mark.slow
def test_a_run_whose_folder_is_removed_stops_and_another_one_there_is_not_disturbed(tmp_path: Path) -> None:
    where = (f"runs={tmp_path / 'runs'}", f"data.cache={tmp_path / 'cache'}", "schedule.usual_lr=1")
    old = start(*ENDLESS, *where, "study=tiny")
    assert wait_for(lambda: has_checkpoint(tmp_path / "runs"), old)
    folder = only_folder(tmp_path / "runs")
    while folder.path.exists():  # the run writes and renames files in it meanwhile
        shutil.rmtree(folder.path, ignore_errors=True)
    name = folder.path.name
    again = ("schedule.epochs=2", "evaluation.every=2", "schedule.lr=1e-5", f"runs={tmp_path / 'runs'}")
    run_well(*SHORT, *where[1:], *again)
    error = old.communicate(timeout=60)[1]
    assert old.returncode == 2, error
    assert "stops and writes nothing more" in error
    assert "Traceback" not in error
    assert not (tmp_path / "runs" / "tiny" / name).exists(), "it is not created again"
    assert only_folder(tmp_path / "runs").record()["state"] == "done"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], RunFolder]:
    """A run of one epoch, with its result removed: the same command continues it."""
    path = tmp_path_factory.mktemp("stopped")
    overrides = (*SHORT, "schedule.epochs=3", f"data.cache={path / 'cache'}", f"runs={path / 'runs'}")
    run_well(*overrides)
    folder = only_folder(path / "runs")
    (folder.path / "result.json").unlink()
    return overrides, folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": "0123456789abcdef"}, "id of the run: 0123456789abcdef -> "),
        ({"data": {"train": "0123456789abcdef"}}, "train annotations: 0123456789abcdef -> "),
    ],
    ids=["run", "data"],
)
def test_a_checkpoint_of_another_run_is_refused(
    stopped: tuple[tuple[str, ...], RunFolder], changes: dict[str, object], words: str
) -> None:
    overrides, folder = stopped
    saved = folder.checkpoint_path.read_bytes()
    torch.save({**torch.load(folder.checkpoint_path), **changes}, folder.checkpoint_path)
    refused = run(*overrides)
    folder.checkpoint_path.write_bytes(saved)
    assert refused.returncode == 2
    assert words in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_a_checkpoint_without_identity_and_a_folder_without_one_are_accepted(
    stopped: tuple[tuple[str, ...], RunFolder],
) -> None:
    overrides, folder = stopped
    content = torch.load(folder.checkpoint_path)
    assert content["run"] == (folder.path / ".run").read_text().strip()
    assert content["data"] == (folder.provenance() or {})["data"]
    (folder.path / ".run").unlink()  # as after `cp -r POINT/* COPY`
    run_well(*overrides)
    assert (folder.path / ".run").read_text().strip() != content["run"]
    (folder.path / "result.json").unlink()
    old = {key: value for key, value in content.items() if key not in ("run", "data")}
    torch.save(old, folder.checkpoint_path)
    run_well(*overrides)
    (folder.path / "result.json").unlink()


@pytest.mark.slow
def test_an_empty_result_and_a_truncated_state_do_not_end_a_run(stopped: tuple[tuple[str, ...], RunFolder]) -> None:
    overrides, folder = stopped
    (folder.path / "result.json").touch()
    (folder.path / "state.json").write_text('{"state": "runn')
    run_well(*overrides)
    assert (folder.result() or {})["last"]
    (folder.path / "result.json").unlink()
