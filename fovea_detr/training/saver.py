"""When a run is saved and restored, and the clock that measures its training time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fovea_detr.config.schema import Checkpoint, Config
from fovea_detr.errors import RunFolderError
from fovea_detr.machine import distributed
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.identity import differences
from fovea_detr.runs.stored import config_text
from fovea_detr.training import checkpoint
from fovea_detr.training.state import TrainState

BEST = "best.pt"
OF_AVERAGE = "ema.pt"  # the averaged weights after the last epoch
BEST_OF_AVERAGE = "best_ema.pt"


@dataclass(frozen=True)
class About:
    """What a checkpoint carries besides the state.

    data: fingerprints by split. categories, category_ids: the names and ids of the classes by output.
    """

    config: Config
    data: Mapping[str, str]
    categories: Mapping[int, str]
    category_ids: Mapping[int, int]

    def content(self) -> dict[str, Any]:
        classes = {"categories": dict(self.categories), "category_ids": dict(self.category_ids)}
        return {"config": config_text(self.config), **classes, "data": dict(self.data)}

    def differences(self, content: Mapping[str, Any]) -> list[str]:
        """`key: stored -> now` of a checkpoint's configuration and data. Older ones carry neither."""
        before = content.get("data") or {}
        changed = differences(content["config"], self.config) if content.get("config") is not None else []
        data = [(split, before.get(split, now), now) for split, now in self.data.items()]
        return changed + [f"{split} annotations: {old} -> {now}" for split, old, now in data if old != now]


class Saver:
    """Checkpoint and history of one run. Every rank reads them, only rank 0 writes them.

    gpus: how many the run uses; 0 on CPUs.
    """

    about: About | None = None

    def __init__(self, folder: RunFolder, state: TrainState, settings: Checkpoint, gpus: int) -> None:
        self.folder = folder
        self.state = state
        self.minutes = settings.minutes  # between two checkpoints
        self.keeps_best = settings.best
        self.gpus = gpus
        self.writes = distributed.rank() == 0
        self._restored = self._position()
        self.start_clock()

    def restore(self) -> None:
        """Load the folder's newest checkpoint, if there is one.

        Raises RunFolderError for a checkpoint of another run, configuration, data or total batch size.
        """
        content = checkpoint.latest(self.folder)
        if content is not None:
            self._check_same_run(content)
            if not self.folder.has_result():  # else it is only evaluated
                self._check_same_batch(content["position"]["total_batch_size"])
            self.state.load_state_dict(content)
            if self.writes:
                self.folder.write_history(self.state.history)
        self._restored = self._position()
        self.state.starts += 1

    def extend(self, origin: RunFolder) -> None:
        """Begin with the final state of another run, its history and cost included.

        Raises RunFolderError if that is not this run's beginning: other data, total batch or number of epochs.
        """
        content, about = checkpoint.latest(origin), self.about
        assert content is not None
        assert about is not None
        changed = replace(about, config=replace(about.config, extend=None)).differences(content)
        epoch, epochs = content["position"]["epoch"], about.config.schedule.epochs
        changed += [f"{epoch} of {epochs} epochs"] if epoch != epochs else []
        if changed:
            raise RunFolderError(f"{origin.checkpoint_path} is not where this run goes on ({'; '.join(changed)})")
        self._check_same_batch(content["position"]["total_batch_size"])
        self.state.load_state_dict(content)
        self.state.starts += 1
        if self.writes:
            self._take_best(origin)
            self.folder.write_history(self.state.history)
        self._restored = self._position()

    def start_clock(self) -> None:
        """Measure training time from now on: start-up and preflight do not count."""
        self._saved_at = self._clock = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last checkpoint is older than `minutes`. The ranks' clocks differ, and so may their answers."""
        return time.monotonic() - self._saved_at >= self.minutes * 60

    def save(self) -> None:
        """Write the checkpoint."""
        self._add_elapsed_time()
        self._saved_at = time.monotonic()
        if self.writes:
            about = self.about.content() if self.about is not None else {}
            run = {"run": self.folder.claimed.run_id} if self.folder.claimed is not None else {}
            checkpoint.save(self.folder, {**self.state.state_dict(), **about, **run})
            if self._position() != self._restored:
                self.folder.step_saved()

    def save_best(self, line: Mapping[str, Any]) -> None:
        """With `checkpoint.best`: write best.pt, best_ema.pt where this epoch, not yet in the history, has the best AP.

        Before the checkpoint: a run that is killed in between evaluates the epoch again, and writes the same file.
        """
        for name, _, model, key in self._kept() if self.keeps_best else ():
            before = max((old[key] for old in self.state.history if key in old), default=-math.inf)
            if line.get(key, -math.inf) > before:
                self._save_weights(name, model, {"epoch": line["epoch"], "AP": line[key]})

    def weights_files(self, outcome: Mapping[str, Any]) -> dict[str, Any]:
        """Write ema.pt, if there is an average -> the nodes of result.json that name a file of weights.

        A best file is named only if it is of the best epoch: `checkpoint.best` may have been set later.
        """
        found: dict[str, Any] = {}
        for name, node, _, _ in self._kept():
            path = self.folder.path / name
            if self.keeps_best and path.exists() and checkpoint.read(path).get("epoch") == outcome[node]["epoch"]:
                found[node] = {**outcome[node], "checkpoint": name}
        if self.state.average is not None:
            self._save_weights(OF_AVERAGE, self.state.average.model, {"epoch": self.state.epoch})
            found["ema_checkpoint"] = OF_AVERAGE
        return found

    def commit(self, line: dict[str, Any]) -> None:
        """End an epoch: write the checkpoint first, then the history with this line."""
        self._add_elapsed_time()
        self.state.end_epoch(line, self.gpus)
        self.save()
        if self.writes:
            self.folder.write_history(self.state.history)

    def _take_best(self, origin: RunFolder) -> None:
        """Copy its best weights, which this run may not surpass."""
        for name, *_ in self._kept() if self.keeps_best else ():
            path = origin.path / name
            if path.exists():
                self.folder.write(name, lambda file, path=path: file.write(path.read_bytes()))

    def _kept(self) -> list[tuple[str, str, nn.Module, str]]:
        """The files of the best weights: name, node of result.json, model, metric in the history."""
        average = self.state.average
        kept: list[tuple[str, str, nn.Module, str]] = [(BEST, "best", self.state.model, "AP")]
        return kept if average is None else [*kept, (BEST_OF_AVERAGE, "ema_best", average.model, "ema_AP")]

    def _save_weights(self, name: str, model: nn.Module, facts: Mapping[str, Any]) -> None:
        if self.writes:
            about = self.about.content() if self.about is not None else {}
            checkpoint.save_as(self.folder, name, {"model": model.state_dict(), **facts, **about})

    def _add_elapsed_time(self) -> None:
        now = time.monotonic()
        self.state.train_seconds += now - self._clock
        self._clock = now

    def _position(self) -> tuple[int, int]:
        return self.state.epoch, self.state.batches_done

    def _check_same_run(self, content: Mapping[str, Any]) -> None:
        """A checkpoint without an id is older than ids; a folder without one (a copy) takes any that fits."""
        claimed, theirs = self.folder.claimed, content.get("run")
        changed = self.about.differences(content) if self.about is not None else []
        if claimed is not None and not claimed.is_first and theirs not in (None, claimed.run_id):
            changed.append(f"id of the run: {theirs} -> {claimed.run_id}")
        if changed:
            raise RunFolderError(
                f"{self.folder.checkpoint_path} was saved by another run ({'; '.join(changed)}): "
                "put this run's own checkpoint back, or choose another study=NAME"
            )

    def _check_same_batch(self, before: int) -> None:
        now = self.state.total_batch_size
        if before != now:
            is_set = self.about is not None and self.about.config.schedule.total_batch is not None
            raise RunFolderError(
                f"{self.folder.path}: this run was trained with a total batch of {before} images, now it would be "
                f"{now} ({distributed.world_size()} processes): "
                + (f"set schedule.total_batch={before}" if is_set else "start it with as many processes as before")
            )
