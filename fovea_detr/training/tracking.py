"""A run's numbers and pictures on their way to its tracker, which never stops the training."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fovea_detr.config.schema import Config, leaves
from fovea_detr.errors import RunFolderError
from fovea_detr.runs.files import adopt_group
from fovea_detr.runs.folder import RunFolder
from fovea_detr.training.trackers import DEFAULTS, TRACKERS, Tracked, Tracker

FOLDERS = ("tensorboard", "wandb")  # of trackers that write below the run folder, by path


class Tracking:
    """The tracked run of a run folder, opened at the first use. warn: writes a line for the user.

    The tracker gets every epoch of the history that it does not hold, so that nothing is missing after a kill.
    """

    def __init__(self, config: Config, folder: RunFolder, warn: Callable[[str], None]) -> None:
        self.config = config
        self.folder = folder
        self.warn = warn
        self._tracker: Tracker | None = None
        self._known = -1
        self._has_failed = False

    def send(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Log the epochs that the tracker does not hold. After an error, nothing until `finish`."""

        def log_missing(tracker: Tracker) -> None:
            for line in history:
                if line["epoch"] > self._known:
                    tracker.log(numbers(line), line["epoch"])
                    self._known = line["epoch"]

        self._try(log_missing)

    def finish(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Log what is missing, and the sample predictions; try once more if there was an error."""
        self._has_failed = False
        self.send(history)
        pictures = self.folder.samples()
        if pictures:
            self._try(lambda tracker: tracker.show(pictures, self._known))
        self.close(is_done=True)

    def close(self, *, is_done: bool = False) -> None:
        if self._tracker is not None:
            self._try(lambda tracker: tracker.close(is_done=is_done))
            self._tracker = None

    def _try(self, act: Callable[[Tracker], object]) -> None:
        if self._has_failed:
            return
        self.folder.check()  # trackers write by path
        name = self.config.tracker
        try:
            self._tracker = self._tracker or self._open()
            act(self._tracker)
            self._share_files()
        except RunFolderError:
            raise
        except Exception as error:
            self._has_failed = True
            reason = (str(error).strip().splitlines() or ["no message"])[0]
            self.warn(
                f"warning: tracker={name} failed ({type(error).__name__}: {reason}); the run goes on without it, "
                "history.jsonl has every number, and the run's next start sends what is missing"
            )

    def _open(self) -> Tracker:
        for variable, value in DEFAULTS.items():
            os.environ.setdefault(variable, value)
        ids, name = self.folder.tracker_ids(), self.config.tracker
        tracker = TRACKERS[name](Tracked(self.config, self.folder.path, ids.get(name)))
        if tracker.id != ids.get(name):
            self.folder.write_tracker_ids({**ids, name: tracker.id})
        self._known = tracker.known
        return tracker

    def _share_files(self) -> None:
        for name in FOLDERS:
            for new in (self.folder.path / name, *(self.folder.path / name).rglob("*")):
                if new.exists() and not new.is_symlink():
                    adopt_group(new, new.parent)


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of history.jsonl: `loss`, `AP_by_category/person`, `timing/seconds`."""
    found = leaves(dict(line)).items()
    return {key.replace(".", "/", 1): value for key, value in found if type(value) in (int, float)}
