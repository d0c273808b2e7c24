"""The state of training, as a checkpoint holds it: model, optimizer and the position in the run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from fovea_detr.errors import WeightsError
from fovea_detr.runs.folder import ALL_METRICS, BY_CATEGORY
from fovea_detr.training.average import Average
from fovea_detr.training.optim import refuse_other_groups


@dataclass
class TrainState:
    """Everything that training changes. The fields after `average` are the position in the run.

    model: the bare module, without DDP. average: of its weights, with `train.ema`. sums: each loss, summed over the
    batches of this epoch whose losses are read.
    history: one dict per finished epoch, as in history.jsonl. Times are wall-clock seconds.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None = None
    epoch: int = 0  # finished epochs
    batches_done: int = 0  # of the current epoch
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    train_seconds: float = 0.0  # of the current epoch
    total_seconds: float = 0.0  # of all finished epochs, evaluation included
    total_batch_size: int = 0  # images of one step, over all ranks
    starts: int = 0  # processes that have worked on this run, this one included

    @property
    def resumed(self) -> bool:
        """Whether this process continues from a checkpoint."""
        return self.starts > 1

    def state_dict(self) -> dict[str, Any]:
        """The content of a checkpoint file: `model`, `optimizer`, perhaps `ema`, and `position`, the other fields."""
        ema = {} if self.average is None else {"ema": self.average.model.state_dict()}
        position = {entry.name: getattr(self, entry.name) for entry in fields(self)[3:]}
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), **ema, "position": position}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Restore what `state_dict` has returned. Raises WeightsError for other groups or tensors."""
        refuse_other_groups(self.optimizer, content["optimizer"])
        try:
            self.model.load_state_dict(content["model"])
            if self.average is not None:
                self.average.model.load_state_dict(content["ema"])
        except RuntimeError as error:
            raise WeightsError(
                f"the checkpoint's model is not the one that this version builds "
                f"({' '.join(str(error).split())[:200]}): the run was trained by another version; "
                "it cannot be resumed; start again with study=NAME"
            ) from None
        self.optimizer.load_state_dict(content["optimizer"])
        for name, value in content["position"].items():
            setattr(self, name, value)

    def add_losses(self, losses: dict[str, float]) -> None:
        """Add the losses of one batch to the sums of this epoch. A name that its first batch has not is left out.

        An older version may have begun the epoch: the mean would lack its batches.
        """
        is_first = not self.sums
        for name, value in losses.items():
            if is_first or name in self.sums:
                self.sums[name] = self.sums.get(name, 0.0) + value

    def end_epoch(self, line: dict[str, Any], gpus: int) -> None:
        """Add this epoch's line, completed by its timing, to the history, and move to the next epoch.

        line: epoch, steps, losses, metrics and `timing`. gpus: how many the run uses; 0 on CPUs.
        """
        line["timing"] |= self._timing(line["timing"].get("evaluation_seconds", 0.0), gpus)
        self.total_seconds = line["timing"]["total_seconds"]
        self.history.append(line)
        self.epoch, self.batches_done, self.sums, self.train_seconds = self.epoch + 1, 0, {}, 0.0

    def _timing(self, evaluation_seconds: float, gpus: int) -> dict[str, float]:
        """Of this epoch: seconds with evaluation, images, images/s without it. Of the whole run: seconds, GPU-hours."""
        seconds, images = self.train_seconds, self.batches_done * self.total_batch_size
        last = self.history[-1]["timing"] if self.history else {}
        before = last.get("gpu_hours", self.total_seconds / 3600 * gpus)  # older histories have no GPU-hours
        return {
            "seconds": seconds,
            "total_seconds": self.total_seconds + seconds,
            "images": images,
            "images_per_second": images / max(1e-9, seconds - evaluation_seconds),
            "gpu_hours": before + seconds / 3600 * gpus,
        }

    def has_stalled(self, patience: int | None, *newest: float) -> bool:
        """Whether the last `patience` evaluations, with the newest AP, are no better than the best before. None: never.

        Known on rank 0 alone, until a checkpoint is read.
        """
        scores = [*(line["AP"] for line in self.history if "AP" in line), *newest]
        if patience is None or len(scores) <= patience:
            return False
        return max(scores[-patience:]) <= max(scores[:-patience])

    def outcome(self) -> dict[str, Any]:
        """The part of result.json that comes from the history: last and best metrics, epochs, steps, time and cost.

        ema_best: the best epoch of the averaged weights.
        """
        evaluated = [line for line in self.history if "AP" in line]
        best = {"best": max(evaluated, key=lambda line: line["AP"])}
        if self.average is not None:
            best["ema_best"] = max(evaluated, key=lambda line: line["ema_AP"])
        timings = [line["timing"] for line in self.history]
        images = sum(timing["images"] for timing in timings)
        training = sum(timing["seconds"] - timing.get("evaluation_seconds", 0.0) for timing in timings)
        return {
            "last": _metrics(evaluated[-1]),
            **{name: {"epoch": line["epoch"], **_metrics(line)} for name, line in best.items()},
            "epochs": len(self.history),
            "steps": self.history[-1]["steps"],
            "minutes": self.total_seconds / 60,
            "gpu_hours": timings[-1]["gpu_hours"],
            "images_per_second": images / max(1e-9, training),
            "starts": self.starts,
        }


def _metrics(line: dict[str, Any]) -> dict[str, Any]:
    def is_metric(name: str) -> bool:
        return name in ALL_METRICS or name.endswith(BY_CATEGORY) or name.startswith(("ema_", "val_"))

    return {name: value for name, value in line.items() if is_metric(name)}
