"""What has been submitted for a study: runs/<study>/manifest.jsonl, a line before every sbatch and one after it.

The job's name carries the submission's id, so jobs whose second line is missing (the shell was killed in between) are
found by name."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig, OmegaConf

from fovea_detr.compose import parse
from fovea_detr.config.schema import Config
from fovea_detr.errors import UserError

LOCK_SECONDS = 120.0


@dataclass
class Submission:
    """Some points of a study, sent to the queue together: an array job, whose task n is the n-th point."""

    id: str
    name: str  # of the job
    points: list[str]
    snapshot: str  # the folder that holds the code
    kind: str = "slurm"  # slurm | local
    command: list[str] = field(default_factory=list)
    user: str = ""
    time: float = 0.0
    resources: dict[str, Any] = field(default_factory=dict)  # what the queue was asked for, to ask for it again
    job: str | None = None  # of the array; None: not known (yet)
    refused: str | None = None  # why the queue did not take it

    def job_of(self, point: str) -> str | None:
        """SLURM's id of the point's job, `ARRAY_INDEX`."""
        return None if self.job is None else f"{self.job}_{self.points.index(point)}"


@dataclass(frozen=True)
class Manifest:
    """Of one study, in its folder. Only the holder of the lock writes; anybody may read at any time."""

    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / "manifest.jsonl"

    def submission_folder(self, submission_id: str) -> Path:
        return self.folder / ".submissions" / submission_id

    def config_file(self, submission: Submission, point: str) -> Path:
        """The configuration of a point, frozen when it was submitted."""
        return self.submission_folder(submission.id) / f"{submission.points.index(point)}.yaml"

    @contextmanager
    def locked(self) -> Iterator[IO[bytes]]:
        """Alone with the study. Yields the lock's file: a child that inherits it keeps the lock if we are killed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + LOCK_SECONDS
        with (self.folder / ".lock").open("ab") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() >= end:
                        raise UserError(
                            f"{self.folder}: another command has been submitting this study for {LOCK_SECONDS:.0f} s; "
                            "wait for it or stop it"
                        ) from None
                    time.sleep(0.1)
            yield file

    def read(self) -> list[Submission]:
        """All submissions, oldest first. A last line that a crash cut short was never acted on, and is left out."""
        found: dict[str, Submission] = {}
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            kind = event.pop("event")
            if kind == "submit":
                found[event["id"]] = Submission(**event)
            elif event["id"] in found:
                setattr(found[event["id"]], "job" if kind == "submitted" else "refused", event["value"])
        return list(found.values())

    def will_submit(self, submission: Submission) -> None:
        content = {key: value for key, value in asdict(submission).items() if key not in ("job", "refused")}
        self._append({"event": "submit", **content})

    def was_submitted(self, submission: Submission, job: str, *, adopted: bool = False) -> None:
        submission.job = job
        self._append(
            {"event": "submitted", "id": submission.id, "value": job, **({"adopted": True} if adopted else {})}
        )

    def was_refused(self, submission: Submission, reason: str) -> None:
        submission.refused = reason
        self._append({"event": "refused", "id": submission.id, "value": reason})

    def _append(self, event: dict[str, Any]) -> None:
        with self.path.open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a line that a crash cut short
                    file.write(b"\n")
            file.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def load_frozen(path: Path) -> Config:
    """A point's configuration as it was submitted, checked again: a file that it names may have gone."""
    composed = OmegaConf.load(path)
    assert isinstance(composed, DictConfig)
    return parse(composed)


def new_id() -> str:
    return f"{time.strftime('%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def job_name(study: str, submission_id: str) -> str:
    """What squeue shows: the study, and which submission it is."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', study)[:40]}-{submission_id}"
