"""The run folder, the only interface between a run and its analysis: every file in it is written and read here.

    runs/<study>/<point>/
        config.yaml       the resolved configuration
        provenance.json   code, packages, device, job, command, data: where the numbers come from
        split.json        with data.val_fraction: the images of each split
        state.json        queued | running (with a heartbeat) | preempted | failed (with the reason) | done
        history.jsonl     a line per epoch: losses and metrics by name; seconds and rates under "timing"
        checkpoint.pt     everything a resume needs; checkpoint_before.pt is the previous one
        result.json       last and best metrics, cost, inference time: its presence means done
        matches.npz       of the last evaluation, what a resample of the images needs: evaluation/matches.py

Standard library only. Files are replaced atomically: written to a temporary name, synced, renamed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from fovea_detr.errors import RunFolderError

FILES = ("config.yaml", "state.json", "history.jsonl", "result.json", "provenance.json")
STATES = ("queued", "running", "preempted", "failed", "done")
HEARTBEAT_SECONDS = 30.0
MATCHES = "matches.npz"


class Metric(NamedTuple):
    """A number that COCOeval's arrays hold: the mean over recalls, categories and IoUs.

    table: precision | recall. iou: one or several of COCOeval's params.iouThrs; None for all ten. area, detections (an
    image): one of its areaRngLbl, maxDets.
    """

    name: str
    table: str
    iou: float | tuple[float, ...] | None = None
    area: str = "all"
    detections: int = 100

    def places(self, thresholds: Sequence[float]) -> list[int]:
        """The places of its IoUs in a list of thresholds. AssertionError: one is not there."""
        if self.iou is None:
            return list(range(len(thresholds)))
        wanted = self.iou if isinstance(self.iou, tuple) else (self.iou,)
        found = [[i for i, one in enumerate(thresholds) if abs(one - iou) < 1e-9] for iou in wanted]
        assert all(found), f"{self.name}: COCOeval has no IoU of {wanted[found.index([])]}"
        return [i for places in found for i in places]


# Every metric that a run computes, stores and shows in a table: a new one is a line here.
COCO_METRICS = (
    Metric("AP", "precision"),
    Metric("AP50", "precision", iou=0.5),
    Metric("AP75", "precision", iou=0.75),
    Metric("AP_small", "precision", area="small"),
    Metric("AP_medium", "precision", area="medium"),
    Metric("AP_large", "precision", area="large"),
    Metric("AR_1", "recall", detections=1),
    Metric("AR_10", "recall", detections=10),
    Metric("AR_100", "recall"),
    Metric("AR_small", "recall", area="small"),
    Metric("AR_medium", "recall", area="medium"),
    Metric("AR_large", "recall", area="large"),
    Metric("AP90", "precision", iou=0.9),
)
METRICS = tuple(metric.name for metric in COCO_METRICS)


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace `path` by what `write` puts into the open file; after a crash there is the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def lock_file(folder: Path) -> IO[bytes]:
    """The open file `.lock` of a folder, which is created if needed. RunFolderError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / ".lock").open("ab")
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot write there ({error.strerror}); choose runs=FOLDER") from None


def is_free(file: IO[bytes], lock: Callable[[IO[bytes], int], None]) -> bool:
    """Lock a file by fcntl's lockf or flock -> whether it was free. RunFolderError if its file system has no locks."""
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):  # another process holds it
            return False
        raise RunFolderError(
            f"{file.name}: this file system does not support file locks ({error.strerror}), and without them two "
            "processes could write one run; put runs=FOLDER on one that does (Lustre: mounted with -o flock)"
        ) from None
    return True


def this_start() -> dict[str, Any]:
    """Which job runs this process, and how often SLURM has restarted it; nothing outside SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return {}
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    return {"job": f"{array}_{task}" if array else job, "restarts": restarts}


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()))


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=True)


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


class RunFolder:
    """One run folder. Reading never writes; a missing file reads as None or as an empty list.

    Reading a damaged file raises json.JSONDecodeError; the caller names the folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._last_beat = 0.0
        self._lock: IO[bytes] | None = None

    # ---- what a run writes -------------------------------------------------------------------------------------------

    def lock(self, seconds: float = 0) -> None:
        """Lock the folder until this process ends. RunFolderError if another process holds the lock.

        seconds: how long to wait for it. A requeued job may start before the killed one has ended, and a shared file
        system may take a while to release the lock of a machine that went down.
        """
        end = time.monotonic() + seconds
        while not self.try_lock():
            if time.monotonic() >= end:
                raise RunFolderError(f"{self.path}: another process is running in this folder; wait for it or stop it")
            time.sleep(0.2)
        for leftover in self.path.glob(".*.tmp"):  # of a process that was killed while writing
            leftover.unlink(missing_ok=True)

    def try_lock(self) -> bool:
        """Lock the folder -> whether it was free."""
        file = lock_file(self.path)
        if not is_free(file, fcntl.lockf):  # of this process only: forked workers do not hold it
            file.close()
            return False
        self._lock = file
        return True

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write_config(self, yaml_text: str) -> None:
        write_text(self.path / "config.yaml", yaml_text)

    def write_provenance(self, provenance: dict[str, Any]) -> None:
        write_text(self.path / "provenance.json", _to_json(provenance, indent=2) + "\n")

    def write_split(self, image_ids: dict[str, dict[str, int]]) -> None:
        """image_ids: by split and file name, where data.val_fraction has divided one annotation file."""
        write_text(self.path / "split.json", _to_json(image_ids, indent=0) + "\n")

    def write_state(self, state: str, **details: Any) -> None:
        assert state in STATES, state
        self._last_beat = time.time()
        start = this_start()
        record = {"state": state, "time": self._last_beat, "pid": os.getpid(), **({"start": start} if start else {})}
        record |= details
        write_text(self.path / "state.json", _to_json(record) + "\n")

    def beat(self, **progress: Any) -> None:
        """Write a heartbeat with the progress, at most once every HEARTBEAT_SECONDS."""
        if time.time() - self._last_beat >= HEARTBEAT_SECONDS:
            self.write_state("running", **progress)

    def write_history(self, lines: list[dict[str, Any]]) -> None:
        write_text(self.path / "history.jsonl", "".join(_to_json(line) + "\n" for line in lines))

    def write_result(self, result: dict[str, Any]) -> None:
        write_text(self.path / "result.json", _to_json(result, indent=2) + "\n")

    def write_predictions(self, coco_results: list[dict[str, Any]]) -> None:
        write_text(self.path / "predictions.json", _to_json(coco_results))

    def log(self, line: str) -> None:
        """Append a plain line to train.log."""
        with (self.path / "train.log").open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    # ---- what a resume, a sweep and an analysis read -----------------------------------------------------------------

    @property
    def checkpoint_path(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def checkpoint_before_path(self) -> Path:
        return self.path / "checkpoint_before.pt"

    def config_text(self) -> str | None:
        path = self.path / "config.yaml"
        return path.read_text() if path.exists() else None

    def provenance(self) -> dict[str, Any] | None:
        return _read_json(self.path / "provenance.json")

    def state(self) -> dict[str, Any] | None:
        return _read_json(self.path / "state.json")

    def has_result(self) -> bool:
        """Whether the run is done, without reading the result."""
        return (self.path / "result.json").exists()

    def result(self) -> dict[str, Any] | None:
        return _read_json(self.path / "result.json")

    def history(self) -> list[dict[str, Any]]:
        path = self.path / "history.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []
