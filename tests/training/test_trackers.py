"""Trackers: each one's own file or offline backend holds the numbers of history.jsonl, across a kill and a resume."""

from __future__ import annotations

import importlib.util
import json
import signal
import sqlite3
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fovea_detr.config.checks import CHOICES
from fovea_detr.config.schema import Config
from fovea_detr.errors import ConfigError, RunFolderError
from fovea_detr.runs.folder import RunFolder
from fovea_detr.training import trackers
from fovea_detr.training.tracking import Tracking, numbers
from tests import launch
from tests.launch import only_folder, run, run_well, start, wait_for

Rows = list[tuple[str, int, float]]  # key, epoch, value, as they are stored
HISTORY = [
    {"epoch": epoch, "loss": 1 / epoch, "AP_by_category": {"a.b": 0.5}, "timing": {"seconds": 2.0}} for epoch in (1, 2)
]


class Fake:
    """Keeps what it gets. `opened`: every one of the test, newest last; `broken`: what fails, and with which words."""

    opened: list[Fake]
    broken: dict[str, str]
    held: list[int]

    def __init__(self, run: trackers.Tracked) -> None:
        self._fail("open")
        self.given, self.id, self.known, self.shown = run.id, run.id or "an-id", max(self.held, default=-1), []
        self.opened.append(self)

    def log(self, values: dict[str, float], epoch: int) -> None:
        self._fail("log")
        assert values == numbers(HISTORY[epoch - 1])
        self.held.append(epoch)

    def show(self, pictures: list[Path], epoch: int) -> None:
        self.shown.append((epoch, [path.name for path in pictures]))

    def close(self, *, is_done: bool) -> None:
        self._fail("close")
        self.ended = is_done

    def _fail(self, what: str) -> None:
        if what in self.broken:
            raise OSError(self.broken[what])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    Fake.opened, Fake.broken, Fake.held = [], {}, []
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Fake)
    return Fake


def tracking(path: Path) -> tuple[Tracking, list[str]]:
    lines: list[str] = []
    return Tracking(Config(tracker="wandb"), RunFolder(path), lines.append), lines


def test_the_next_start_opens_the_same_run_and_sends_what_it_lacks(tmp_path: Path, fake: type[Fake]) -> None:
    first, warnings = tracking(tmp_path)
    first.send(HISTORY[:1])
    first.close()
    second, more = tracking(tmp_path)
    second.send(HISTORY)
    second.send(HISTORY)
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "7.jpg").touch()
    second.finish(HISTORY)
    assert fake.held == [1, 2]
    assert [one.given for one in fake.opened] == [None, "an-id"]
    assert [one.ended for one in fake.opened] == [False, True]
    assert fake.opened[1].shown == [(2, ["7.jpg"])]
    assert warnings + more == []


@pytest.mark.parametrize("what", ["open", "log"])
def test_a_tracker_that_fails_is_one_warning_and_one_more_try_at_the_end(
    tmp_path: Path, fake: type[Fake], what: str
) -> None:
    ours, warnings = tracking(tmp_path)
    fake.broken[what] = "no route to host\nmore"
    ours.send(HISTORY[:1])
    ours.send(HISTORY)
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: tracker=wandb failed (OSError: no route to host); the run goes on")
    fake.broken.clear()
    ours.finish(HISTORY)
    assert fake.held == [1, 2]
    assert fake.opened[-1].ended


def test_a_tracker_that_fails_to_close_is_a_warning(tmp_path: Path, fake: type[Fake]) -> None:
    ours, warnings = tracking(tmp_path)
    ours.send(HISTORY)
    fake.broken["close"] = ""
    ours.finish(HISTORY)
    assert "OSError: no message" in warnings[0]


def test_nothing_is_tracked_once_the_folder_is_lost(tmp_path: Path, fake: type[Fake]) -> None:
    ours, _ = tracking(tmp_path / "point")
    ours.folder.lock()
    (ours.folder.path / ".run").write_text("0123456789abcdef\n")
    with pytest.raises(RunFolderError, match="no longer this run's"):
        ours.send(HISTORY)
    assert fake.opened == []


def test_the_numbers_of_a_line() -> None:
    found = numbers({"epoch": 1, "AP": 0.5, "AP_by_category": {"a.b": -1.0}, "timing": {"seconds": 2.0}, "note": "x"})
    assert found == {"epoch": 1, "AP": 0.5, "AP_by_category/a.b": -1.0, "timing/seconds": 2.0}


def test_mlflow_names_are_those_that_it_allows_and_stay_different() -> None:
    names = ["C++", "C--", "a.b", "a_b", "naïve", "AP_by_category/person", "..", "#1"]
    allowed = [trackers._allowed(name) for name in names]
    assert len({*allowed}) == len(names)
    assert allowed[5] == names[5]
    if importlib.util.find_spec("mlflow"):
        from mlflow.utils.validation import _validate_metric_name

        for name in allowed:
            _validate_metric_name(name)


# ---- packages --------------------------------------------------------------------------------------------------------


def test_every_tracker_can_be_chosen_and_has_an_extra() -> None:
    assert {"none", *trackers.TRACKERS} == {*CHOICES["tracker"]}
    text = (launch.ROOT / "pyproject.toml").read_text()
    assert all(f"\n{name} = [" in text for name in trackers.TRACKERS)


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=rf"tracker={name} needs .*pip install 'fovea-detr\[{name}\]'"):
        trackers.refuse_missing(name)
    monkeypatch.delitem(sys.modules, name)
    (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # W&B and MLflow make such folders
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match=f"tracker={name} needs"):
        trackers.refuse_missing(name)
    trackers.refuse_missing("none")


@pytest.mark.slow
def test_a_missing_package_ends_the_command_before_training(tmp_path: Path) -> None:
    blocked = tmp_path / "site" / "sitecustomize.py"
    blocked.parent.mkdir()
    blocked.write_text("import sys\nsys.modules['wandb'] = None\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(launch.ENVIRONMENT, "PYTHONPATH", str(blocked.parent))
        done = run(*SHORT, "tracker=wandb", f"runs={tmp_path / 'runs'}", f"data.cache={tmp_path / 'cache'}")
    assert done.returncode == 2
    assert done.stderr == "error: tracker=wandb needs the package wandb: pip install 'fovea-detr[wandb]'\n"
    assert not (tmp_path / "cache").exists()


# ---- real runs -------------------------------------------------------------------------------------------------------

SHORT = ("experiment=tiny", "schedule.epochs=4", "data.train_images=160", "data.val_images=16", "threads=1")
SHORT += ("evaluation.timed_images=2", "checkpoint.minutes=0.003")


def tensorboard_rows(run: Path, _store: Path) -> tuple[Rows, int, set[str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    rows = [(key, e.step, e.value) for key in events.Tags()["scalars"] for e in events.Scalars(key)]
    return rows, len(events.Tags()["images"]), {"one"}


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of a W&B offline file: a log of LevelDB after 7 bytes, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole = (b"" if kind in (1, 2) else whole) + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(whole)


def wandb_rows(run: Path, _store: Path) -> tuple[Rows, int, set[str]]:
    """Of the newest folder alone: it is the one to sync."""
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    rows, pictures = [], 0
    for record in wandb_records(files[-1]):
        items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        if "epoch" in items:
            rows += [(key, items["_step"], v) for key, v in items.items() if not key.startswith("_")]
        pictures += items.get("samples/count", 0)
    return rows, pictures, {file.stem for file in files}


def mlflow_rows(_run: Path, store: Path) -> tuple[Rows, int, set[str]]:
    runs = [path.parent for path in store.glob("*/*/meta.yaml")]
    rows: Rows = []
    for file in (file for file in (runs[0] / "metrics").rglob("*") if file.is_file()):
        lines = (line.split() for line in file.read_text().splitlines())
        rows += [(str(file.relative_to(runs[0] / "metrics")), int(step), float(value)) for _, value, step in lines]
    return rows, len(list(runs[0].glob("artifacts/samples/*.jpg"))), {run.name for run in runs}


def trackio_rows(_run: Path, store: Path) -> tuple[Rows, int, set[str]]:
    found = sqlite3.connect(store / "tiny.db").execute("select run_id, step, metrics from metrics").fetchall()
    lines = [(step, json.loads(text)) for _, step, text in found]
    rows = [(key, step, v) for step, line in lines if "epoch" in line for key, v in line.items()]
    pictures = sum("file_path" in value for _, line in lines for value in line.values() if isinstance(value, dict))
    return rows, pictures, {run_id for run_id, _, _ in found}


READERS: dict[str, Callable[[Path, Path], tuple[Rows, int, set[str]]]] = {
    "tensorboard": tensorboard_rows,
    "wandb": wandb_rows,
    "mlflow": mlflow_rows,
    "trackio": trackio_rows,
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ranks"), [*((name, 1) for name in READERS), ("tensorboard", 2)])
def test_a_tracker_holds_the_numbers_of_the_history_across_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, ranks: int
) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"the package {name} is not installed")
    store = tmp_path / "store"
    offline = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": str(store), "MLFLOW_ALLOW_FILE_STORE": "true"}
    for variable, value in {**offline, "TRACKIO_DIR": str(store)}.items():
        monkeypatch.setitem(launch.ENVIRONMENT, variable, value)
    overrides = (*SHORT, f"tracker={name}", f"runs={tmp_path / 'runs'}", f"data.cache={tmp_path / 'cache'}")
    process = start(*overrides, ranks=ranks)
    assert wait_for(lambda: len(list(tmp_path.glob("runs/tiny/*/history.jsonl"))) == 1, process)
    process.send_signal(signal.SIGKILL if ranks == 1 else signal.SIGTERM)
    process.communicate(timeout=60)
    assert not only_folder(tmp_path / "runs").has_result()
    run_well(*overrides, ranks=ranks)
    folder = only_folder(tmp_path / "runs")
    rows, pictures, ids = READERS[name](folder.path, store)
    expected = {(key, line["epoch"]): value for line in folder.history() for key, value in numbers(line).items()}
    assert len(rows) == len(expected), "each number once"
    exact = (lambda value: float(np.float32(value))) if name == "tensorboard" else float  # TensorBoard stores float32
    assert {(key, epoch): value for key, epoch, value in rows} == {key: exact(v) for key, v in expected.items()}
    assert pictures == len(folder.samples()) == 4
    assert len(ids) == 1, "the same tracked run"


@pytest.mark.slow
def test_a_server_out_of_reach_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the package mlflow is not installed")
    monkeypatch.setitem(launch.ENVIRONMENT, "MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    out = run_well(*SHORT, "tracker=mlflow", f"runs={tmp_path}", f"data.cache={tmp_path / 'cache'}")
    assert out.count("warning: tracker=mlflow failed (MlflowException: ") == 2, "at the start, and at the end"
    assert "done: AP" in out
    assert len(only_folder(tmp_path).history()) == 4
