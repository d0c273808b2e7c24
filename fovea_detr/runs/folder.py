"""The run folder, the only interface between a run and its analysis: every file in it is written and read here.

    runs/<study>/<point>/
        config.yaml       the resolved configuration
        provenance.json   code, packages, device, job, command, data: where the numbers come from
        split.json        with data.val_fraction: the images of each split
        state.json        queued | running (with a heartbeat) | preempted | failed (with the reason) | done
        history.jsonl     a line per epoch: losses and metrics by name; seconds and rates under "timing"
        checkpoint.pt     everything a resume needs; checkpoint_before.pt is the previous one
        best.pt           with checkpoint.best: the model with the best AP so far; with train.ema, best_ema.pt, too
        ema.pt            with train.ema: the averaged weights after the last epoch
        result.json       last and best metrics, cost, inference time: its presence means done
        .run .lock        the run's id, which its checkpoints carry, too; the lock of the process that works here
        matches.npz       of the last evaluation, what a resample of the images needs: evaluation/matches.py; with masks
                          matches_segm.npz, too, and with a panoptic truth matches_panoptic.npz
        samples/          IMAGE_ID.jpg: predictions on a few validation images, after the last evaluation
        predictions.json  with evaluation.save_predictions: boxes; predictions_segm.json: masks;
                          predictions_panoptic.json and predictions_panoptic/: panoptic segments and their PNGs
        tracker.json      by the name of a tracker, by which id it finds this run

Standard library only. Files are replaced atomically: written to a temporary name, synced, renamed. A process that has
claimed the folder writes into the folder that it has claimed, or nowhere: a removed folder is never created again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from fovea_detr.errors import RunFolderError
from fovea_detr.runs.claim import Claim
from fovea_detr.runs.files import inner_folder, open_in, write_atomic

FILES = ("config.yaml", "state.json", "history.jsonl", "result.json", "provenance.json")
STATES = ("queued", "running", "preempted", "failed", "done")
HEARTBEAT_SECONDS = 30.0
LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND


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
SEGM = "segm_"  # before the name of a metric of boxes: the same of masks
SEGM_METRICS = tuple(f"{SEGM}{name}" for name in METRICS)


class Quality(NamedTuple):
    """A panoptic quality, the mean over the categories. score: PQ | SQ | RQ. group: "" (all) | _things | _stuff."""

    name: str
    score: str
    group: str


PANOPTIC_METRICS = tuple(
    Quality(f"{score}{group}", score, group) for group in ("", "_things", "_stuff") for score in ("PQ", "SQ", "RQ")
)
QUALITIES = tuple(quality.name for quality in PANOPTIC_METRICS)
BY_CATEGORY = "_by_category"  # after the name of a metric
ALL_METRICS = (*METRICS, *SEGM_METRICS, *QUALITIES)


def this_start() -> dict[str, Any]:
    """Which job runs this process, and how often SLURM has restarted it; nothing outside SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return {}
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    return {"job": f"{array}_{task}" if array else job, "restarts": restarts}


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
        self.claimed: Claim | None = None
        self.idle_starts = 0  # of this job, in a row, this one included, that have saved no step
        self._last_beat = 0.0

    # ---- what a run writes -------------------------------------------------------------------------------------------

    def lock(self, seconds: float = 0) -> None:
        """Claim the folder until this process ends. RunFolderError if another process holds it.

        seconds: how long to wait for it. A requeued job may start before the killed one has ended, and a shared file
        system may take a while to release the lock of a machine that went down.
        """
        end = time.monotonic() + seconds
        while not self.try_lock():
            if time.monotonic() >= end:
                raise RunFolderError(f"{self.path}: another process is running in this folder; wait for it or stop it")
            time.sleep(0.2)
        for pattern in (".*.tmp", "samples/.*.tmp", ".rank-*"):  # of a process that was killed
            for leftover in self.path.glob(pattern):
                leftover.unlink(missing_ok=True)

    def try_lock(self) -> bool:
        """Claim the folder -> whether it was free."""
        self.claimed = Claim.take(self.path)
        return self.claimed is not None

    def join(self, run_id: str, *, is_first: bool) -> None:
        """Write, on another rank, only into the folder that rank 0 has claimed for this run."""
        self.claimed = Claim.join(self.path, run_id, is_first=is_first)

    def unlock(self) -> None:
        if self.claimed is not None:
            self.claimed.close()
            self.claimed = None

    def check(self) -> None:
        """Raise RunFolderError if this process has claimed the folder, and it was removed, replaced or taken over."""
        if self.claimed is not None:
            self.claimed.check()

    def write(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        """Replace one of its files by what `write` puts into it, in the claimed folder, if this process has one."""
        if self.claimed is None:
            return write_atomic(self.path / name, write)
        with self.claimed.writing() as folder_fd:
            write_atomic(self.path / name, write, folder_fd)

    def _write_text(self, name: str, text: str) -> None:
        self.write(name, lambda file: file.write(text.encode()))

    def write_config(self, yaml_text: str) -> None:
        self._write_text("config.yaml", yaml_text)

    def write_provenance(self, provenance: dict[str, Any]) -> None:
        self._write_text("provenance.json", _to_json(provenance, indent=2) + "\n")

    def write_split(self, image_ids: dict[str, dict[str, int]]) -> None:
        """image_ids: by split and file name, where data.val_fraction has divided one annotation file."""
        self._write_text("split.json", _to_json(image_ids, indent=0) + "\n")

    def write_state(self, state: str, **details: Any) -> None:
        assert state in STATES, state
        self._last_beat = time.time()
        start = this_start()
        if start and self.idle_starts:
            start["idle"] = self.idle_starts
        record = {"state": state, "time": self._last_beat, "pid": os.getpid(), **({"start": start} if start else {})}
        record |= details
        self._write_text("state.json", _to_json(record) + "\n")

    def step_saved(self) -> None:
        """This start has made progress: state.json no longer counts it as idle."""
        if self.idle_starts:
            self.idle_starts = 0
            self.write_state("running")

    def beat(self, **progress: Any) -> None:
        """Write a heartbeat with the progress, at most once every HEARTBEAT_SECONDS."""
        if time.time() - self._last_beat >= HEARTBEAT_SECONDS:
            self.write_state("running", **progress)

    def write_history(self, lines: list[dict[str, Any]]) -> None:
        self._write_text("history.jsonl", "".join(_to_json(line) + "\n" for line in lines))

    def write_result(self, result: dict[str, Any]) -> None:
        self._write_text("result.json", _to_json(result, indent=2) + "\n")

    def write_predictions(self, coco_results: list[dict[str, Any]]) -> None:
        self._write_text("predictions.json", _to_json(coco_results))

    def write_inside(self, inner: str, name: str, write: Callable[[IO[bytes]], object]) -> None:
        """Replace INNER/NAME, in a folder inside it."""
        if self.claimed is None:
            return write_atomic(self.path / inner / name, write)
        with self.claimed.writing() as folder_fd, inner_folder(folder_fd, inner) as inner_fd:
            write_atomic(Path(name), write, inner_fd)

    def write_tracker_ids(self, ids: Mapping[str, str]) -> None:
        self._write_text("tracker.json", _to_json(ids) + "\n")

    def write_checkpoint(self, write: Callable[[IO[bytes]], object]) -> None:
        """Write checkpoint.pt; the previous one is kept as checkpoint_before.pt."""
        if self.claimed is None:
            self._keep_checkpoint()
        else:
            with self.claimed.writing() as folder_fd:
                self._keep_checkpoint(folder_fd)
        self.write("checkpoint.pt", write)

    def _keep_checkpoint(self, folder_fd: int | None = None) -> None:
        names = (self.checkpoint_path, self.checkpoint_before_path)
        with suppress(FileNotFoundError):
            if folder_fd is None:
                os.replace(*names)
            else:
                os.replace(names[0].name, names[1].name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)

    def log(self, line: str) -> None:
        """Append a plain line to train.log."""
        text = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n".encode()
        if self.claimed is None:
            with (self.path / "train.log").open("ab") as file:
                file.write(text)
            return
        with self.claimed.writing() as folder_fd, open_in(folder_fd, "train.log", LOG_FLAGS) as file:
            file.write(text)

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

    def record(self) -> dict[str, Any]:
        """state.json; empty if it is missing or damaged: a run that goes on writes a new one."""
        try:
            found = self.state()
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def has_result(self) -> bool:
        """Whether the run is done. An empty or truncated result.json is none: the run goes on and writes it again."""
        try:
            return isinstance(self.result(), dict)
        except (OSError, ValueError):
            return False

    def result(self) -> dict[str, Any] | None:
        return _read_json(self.path / "result.json")

    def tracker_ids(self) -> dict[str, str]:
        return _read_json(self.path / "tracker.json") or {}

    def samples(self) -> list[Path]:
        return sorted(self.path.glob("samples/*.jpg"))

    def history(self) -> list[dict[str, Any]]:
        path = self.path / "history.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []
