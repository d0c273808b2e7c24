"""What survives a kill: where a run stands, when it is saved, and how it stops at a step boundary."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import nn

from fovea_detr.config.schema import Config
from fovea_detr.errors import RunFolderError
from fovea_detr.machine import distributed
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.stop import StopFlag, Stopped
from fovea_detr.training import checkpoint
from fovea_detr.training.compiled import Compiled
from fovea_detr.training.reports import Ledger

T = TypeVar("T")


@dataclass
class Parts:
    """What training changes. `model` is the bare module; `wrapped` is what is called (DDP's, with several ranks).

    compiled: what torch.compile did to the model, with compile=true.
    """

    model: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    compiled: Compiled | None = None


@dataclass
class Position:
    """Where a run stands, saved with the weights: epochs and batches done, this epoch's sums, and what it took."""

    epoch: int = 0
    batches_done: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    train_seconds: float = 0.0  # of this epoch
    total_seconds: float = 0.0  # of all epochs that are committed, evaluation included
    total_batch_size: int = 0
    starts: int = 0


class Run:
    """One run on this rank. Only rank 0 writes; every rank reads the same checkpoint and stands at the same step."""

    def __init__(self, config: Config, folder: RunFolder, stop: StopFlag, device: torch.device) -> None:
        self.config = config
        self.folder = folder
        self.stop = stop
        self.device = device
        self.is_writer = distributed.rank() == 0
        self.total_batch_size = config.schedule.batch_size * distributed.world_size()
        self.position = Position(total_batch_size=self.total_batch_size)
        self.ledger = Ledger(self._add)
        self.gpus = distributed.world_size() if device.type == "cuda" else 0
        self.resumed = False
        self.peak_memory_bytes: int | None = None  # of the worst batch, see trial.py
        self._saved_at = self._clock = time.monotonic()

    @property
    def epoch(self) -> int:
        return self.position.epoch

    def resume(self, parts: Parts) -> None:
        """Load the folder's newest checkpoint, if any: weights, optimizer, position. Every start is a resume."""
        content = checkpoint.latest(self.folder)
        if content is not None:
            self.position = Position(**content["position"])
            self._check_same_batch()
            parts.model.load_state_dict(content["model"])
            parts.optimizer.load_state_dict(content["optimizer"])
            self.resumed = True
            if self.is_writer:
                self.folder.write_history(self.position.history)
        self.position.starts += 1
        self.start_clock()

    def start_clock(self) -> None:
        """From here on time is booked on the epoch: the start-up of a process, the trial included, is not training."""
        self._saved_at = self._clock = time.monotonic()

    def _check_same_batch(self) -> None:
        before, now = self.position.total_batch_size, self.total_batch_size
        if before != now:
            raise RunFolderError(
                f"{self.folder.path}: this run has trained with a total batch of {before} images, now it would be "
                f"{now} ({distributed.world_size()} processes): start it with as many processes as before"
            )

    def save(self, parts: Parts) -> None:
        """Write the checkpoint (rank 0)."""
        self._tick()
        self._saved_at = time.monotonic()
        if self.is_writer:
            content = {"model": parts.model.state_dict(), "optimizer": parts.optimizer.state_dict()}
            checkpoint.save(self.folder, {**content, "position": asdict(self.position)})

    def step_done(self, step: int, parts: Parts) -> None:
        """Count one step; save when it is time; once all ranks know that one was asked to stop, save and raise Stopped.

        What a checkpoint holds is complete: the losses of its last step are read first. Raises NonFiniteError.
        """
        position = self.position
        position.batches_done += 1
        if self.ledger.stops_after(step):
            self.ledger.settle()
            self.save(parts)
            raise Stopped(self.stop.number or signal.SIGTERM)
        if time.monotonic() - self._saved_at >= self.config.checkpoint.minutes * 60:
            self.ledger.read()  # a collective is not allowed here: the ranks' clocks differ
            if self.ledger.is_sound:
                self.save(parts)
        if self.is_writer:
            self.folder.beat(epoch=position.epoch, batches_done=position.batches_done)

    def leave_if_asked(self) -> None:
        """Between batches of an evaluation, whose epoch is saved: raise Stopped if asked to, else say that we live."""
        if self.stop.number:
            raise Stopped(self.stop.number)
        if self.is_writer:
            self.folder.beat(epoch=self.position.epoch, batches_done=self.position.batches_done)

    def unless_asked(self, function: Callable[[], T]) -> T:
        """Call a function that may leave by `leave_if_asked`; if one rank does, all do, and none waits for another."""
        value, number = None, 0
        try:
            value = function()
        except Stopped as stopped:
            number = stopped.number
        numbers = distributed.gather(number)
        if any(numbers):
            raise Stopped(max(numbers))
        return cast(T, value)

    def epoch_means(self) -> dict[str, float]:
        """The mean of each loss over the batches of this epoch whose losses are read."""
        unread = 0 if self.ledger.pending is None else 1
        batches = max(1, self.position.batches_done - unread)
        return {name: value / batches for name, value in self.position.sums.items()}

    def _add(self, losses: dict[str, float]) -> None:
        for name, value in losses.items():
            self.position.sums[name] = self.position.sums.get(name, 0.0) + value

    def commit(self, line: dict[str, Any], parts: Parts) -> None:
        """Close an epoch: the checkpoint first, then the history line."""
        position = self.position
        self._tick()
        line["timing"] |= self._timing(line["timing"].get("evaluation_seconds", 0.0))
        position.total_seconds = line["timing"]["total_seconds"]
        position.history.append(line)
        position.epoch, position.batches_done, position.sums, position.train_seconds = position.epoch + 1, 0, {}, 0.0
        self.save(parts)
        if self.is_writer:
            self.folder.write_history(position.history)

    def _timing(self, evaluation_seconds: float) -> dict[str, float]:
        """Of this epoch: seconds with evaluation, images, images/s without it; of all so far: seconds, GPU-hours."""
        position = self.position
        seconds, images = position.train_seconds, position.batches_done * self.total_batch_size
        last = position.history[-1]["timing"] if position.history else {}
        before = last.get("gpu_hours", position.total_seconds / 3600 * self.gpus)  # a history of before this was kept
        return {
            "seconds": seconds,
            "total_seconds": position.total_seconds + seconds,
            "images": images,
            "images_per_second": images / max(1e-9, seconds - evaluation_seconds),
            "gpu_hours": before + seconds / 3600 * self.gpus,
        }

    def outcome(self) -> dict[str, Any]:
        """The result's part that the history tells: last and best metrics, epochs, steps, minutes, rates, GPU-hours."""
        history, seconds = self.position.history, self.position.total_seconds
        evaluated = [line for line in history if "AP" in line]
        best = max(evaluated, key=lambda line: line["AP"])
        images = sum(line["timing"]["images"] for line in history)
        training = sum(line["timing"]["seconds"] - line["timing"].get("evaluation_seconds", 0.0) for line in history)
        return {
            "last": _metrics(evaluated[-1]),
            "best": {"epoch": best["epoch"], **_metrics(best)},
            "epochs": len(history),
            "steps": history[-1]["steps"],
            "minutes": seconds / 60,
            "gpu_hours": history[-1]["timing"]["gpu_hours"],
            "images_per_second": images / max(1e-9, training),
            "peak_memory_bytes": self.peak_memory_bytes,
            "starts": self.position.starts,
        }

    def _tick(self) -> None:
        now = time.monotonic()
        self.position.train_seconds += now - self._clock
        self._clock = now


def _metrics(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name.startswith(("AP", "AR"))}
