"""When a run is saved and restored, and the clock that measures its training time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from fovea_detr.config.schema import Config
from fovea_detr.errors import RunFolderError
from fovea_detr.machine import distributed
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.identity import config_text, differences
from fovea_detr.training import checkpoint
from fovea_detr.training.state import TrainState


class Saver:
    """Checkpoint and history of one run. Every rank reads them, only rank 0 writes them.

    minutes: the time between two checkpoints. gpus: how many the run uses; 0 on CPUs. config, and categories (the class
    names by output): what a checkpoint carries besides the state, for evaluation and finetuning.
    """

    config: Config | None = None
    categories: Mapping[int, str] | None = None

    def __init__(self, folder: RunFolder, state: TrainState, minutes: float, gpus: int) -> None:
        self.folder = folder
        self.state = state
        self.minutes = minutes
        self.gpus = gpus
        self.writes = distributed.rank() == 0
        self.start_clock()

    def restore(self) -> None:
        """Load the folder's newest checkpoint, if there is one.

        Raises RunFolderError for another configuration or another total batch size.
        """
        content = checkpoint.latest(self.folder)
        if content is not None:
            self._check_same_config(content.get("config"))
            self._check_same_batch(content["position"]["total_batch_size"])
            self.state.load_state_dict(content)
            if self.writes:
                self.folder.write_history(self.state.history)
        self.state.starts += 1

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
            about = {} if self.config is None else {"config": config_text(self.config)}
            about |= {} if self.categories is None else {"categories": dict(self.categories)}
            checkpoint.save(self.folder, {**self.state.state_dict(), **about})

    def commit(self, line: dict[str, Any]) -> None:
        """End an epoch: write the checkpoint first, then the history with this line."""
        self._add_elapsed_time()
        self.state.end_epoch(line, self.gpus)
        self.save()
        if self.writes:
            self.folder.write_history(self.state.history)

    def _add_elapsed_time(self) -> None:
        now = time.monotonic()
        self.state.train_seconds += now - self._clock
        self._clock = now

    def _check_same_config(self, before: str | None) -> None:
        changed = differences(before, self.config) if before is not None and self.config is not None else []
        if changed:
            raise RunFolderError(
                f"{self.folder.checkpoint_path} was saved by a run with another configuration ({'; '.join(changed)}): "
                "put this run's own checkpoint back, or choose another study=NAME"
            )

    def _check_same_batch(self, before: int) -> None:
        now = self.state.total_batch_size
        if before != now:
            raise RunFolderError(
                f"{self.folder.path}: this run was trained with a total batch of {before} images, now it would be "
                f"{now} ({distributed.world_size()} processes): start it with as many processes as before"
            )
