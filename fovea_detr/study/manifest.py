"""The submissions of a study on disk: STUDY/manifest.jsonl, with a line before every sbatch and one after it.

The job's name carries the submission's id, so a job whose second line is missing (the shell was killed in between) is
found by its name, and an id that SLURM has given to another job since is not taken for ours. What we cancelled is in
the manifest, too, for clusters without accounting. All that the jobs of a submission read and print is in
STUDY/.submissions/ID: it counts as it lies, wherever the study was moved to.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import re
import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fovea_detr.config.schema import Config
from fovea_detr.errors import UserError
from fovea_detr.runs.files import write_text
from fovea_detr.runs.identity import note_left_out
from fovea_detr.runs.last_error import last_error
from fovea_detr.runs.state import Job
from fovea_detr.runs.stored import Stored, config_text

NOT_IN_FACTS = ("folder", "job", "refused", "cancelled")


@dataclass
class Point:
    """A point to be run: its configuration with absolute paths, and what is asked of the queue for it."""

    name: str
    config: Config
    resources: dict[str, Any]
    typed: Sequence[str] = ()  # the overrides, for messages
    snapshot: Path | None = None  # the code to run; None: the present one
    frozen: str | None = None  # the stored configuration that this code reads; None: that of `config`

    @property
    def study_folder(self) -> Path:
        return Path(self.config.runs) / self.config.study


@dataclass
class Submission:
    """Some points of a study, sent to the queue together: an array job, whose task n is the n-th point."""

    folder: Path  # STUDY/.submissions/ID
    name: str  # of the job
    points: list[str]
    snapshot: str  # the folder that holds the code
    kind: str = "slurm"  # slurm | local
    cluster: str = ""  # SLURM's name of it, or this machine's; empty: not known
    command: list[str] = field(default_factory=list)
    user: str = ""
    time: float = 0.0
    resources: dict[str, Any] = field(default_factory=dict)  # what the queue was asked for, to ask for it again
    job: str | None = None  # of the array; None: not known (yet)
    refused: str | None = None  # why the queue did not take it
    cancelled: dict[str, str] = field(default_factory=dict)  # point -> who cancelled it

    @classmethod
    def new(
        cls, study: Path, points: Sequence[Point], snapshot: Path, kind: str, cluster: str = "", id_: str | None = None
    ) -> Submission:
        """Of points that ask the queue for the same resources. Writes nothing."""
        folder = study / ".submissions" / (id_ or f"{time.strftime('%m%d-%H%M%S')}-{secrets.token_hex(3)}")
        names, command = [point.name for point in points], [os.path.basename(sys.executable), *sys.argv]
        facts: dict[str, Any] = {"user": user(), "time": time.time(), "resources": points[0].resources}
        return cls(folder, job_name(study.name, folder.name), names, str(snapshot), kind, cluster, command, **facts)

    @classmethod
    def load(cls, folder: Path) -> Submission:
        """From its own folder, as a job does."""
        return _from_facts(folder, json.loads((folder / "submission.json").read_text()))

    @property
    def id(self) -> str:
        return self.folder.name

    def job_of(self, point: str) -> str | None:
        """SLURM's id of the point's job, `ARRAY_INDEX`."""
        return None if self.job is None else f"{self.job}_{self._number[point]}"

    @cached_property
    def _number(self) -> dict[str, int]:
        return {point: n for n, point in enumerate(self.points)}

    def config_file(self, point: str) -> Path:
        """The configuration of a point, frozen when it was submitted."""
        return self.folder / f"{self._number[point]}.yaml"

    def exit_file(self, point: str) -> Path:
        """Where the batch script writes its exit code as its last act; absent while it runs, or if it was killed."""
        return self.folder / f"{self._number[point]}.exit"

    def log_files(self, point: str, rank: int | str = 0) -> list[Path]:
        """What a rank of a point's job has printed, over all its starts. rank="*": of all ranks."""
        return sorted(self.folder.glob(f"*_{self._number[point]}_{rank}_log.*"))

    def last_error(self, point: str) -> str:
        """The line of the job's logs that tells why it ended; empty if there is none."""
        return last_error(self.log_files(point))

    def end_of(self, point: str) -> Job | None:
        """How the point's job ended as far as we know without the queue; None if it may wait or run."""
        if self.refused is not None:
            return Job("", self.name, "FAILED", f"not submitted: {self.refused}")
        if point in self.cancelled:
            return Job(self.job_of(point) or "", self.name, "CANCELLED", f"by {self.cancelled[point]}")
        with suppress(OSError, ValueError):
            code = int(self.exit_file(point).read_text())
            return Job(self.job_of(point) or "", self.name, "FAILED" if code else "COMPLETED", f"exit code {code}")
        return None

    def write(self, points: Sequence[Point]) -> None:
        """Everything that its jobs will read; then the line that says that it will be submitted."""
        self.folder.mkdir(parents=True)
        for point in points:
            self.config_file(point.name).write_text(point.frozen or config_text(point.config))
        write_text(self.folder / "submission.json", json.dumps(self._facts(), indent=2) + "\n")
        self.record_intent()

    def record_intent(self) -> None:
        self._append({"event": "submit", **self._facts()})

    def record_job(self, job: str, *, adopted: bool = False) -> None:
        self.job = job
        self._append({"event": "submitted", "id": self.id, "value": job, **({"adopted": True} if adopted else {})})

    def record_cancel(self, points: Sequence[str]) -> None:
        self.cancelled |= dict.fromkeys(points, user())
        self._append({"event": "cancelled", "id": self.id, "value": dict.fromkeys(points, user())})

    def record_refusal(self, reason: str) -> None:
        self.refused = reason
        self._append({"event": "refused", "id": self.id, "value": reason})

    def _facts(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in NOT_IN_FACTS}
        return {"id": self.id, **values}

    def _append(self, event: dict[str, Any]) -> None:
        with manifest_file(self.folder.parent.parent).open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a line that a crash cut short
                    file.write(b"\n")
            file.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def manifest_file(study: Path) -> Path:
    return study / "manifest.jsonl"


EVENTS = {"submitted": "job", "refused": "refused"}  # what an event's value is of its submission


def read(study: Path) -> list[Submission]:
    """All submissions, oldest first. A line that a crash cut short was never acted on: it is left out."""
    found: dict[str, Submission] = {}
    path = manifest_file(study)
    try:
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); its owner is to let the group read it") from None
    for line in lines:
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            event = json.loads(line)
            kind, id_ = event.pop("event"), event["id"]
            if kind == "submit":
                found[id_] = _from_facts(study / ".submissions" / id_, event)
            elif kind == "cancelled":
                found[id_].cancelled |= event["value"]
            else:
                setattr(found[id_], EVENTS[kind], event["value"])
    return list(found.values())


def _from_facts(folder: Path, facts: dict[str, Any]) -> Submission:
    known = {f.name for f in dataclasses.fields(Submission)}  # a newer version may have added some
    submission = Submission(folder, **{key: value for key, value in facts.items() if key in known})
    code = Path(submission.snapshot)
    if code.parent.name == ".snapshots":  # of this study, which may have been moved
        submission.snapshot = str(folder.parent.parent / ".snapshots" / code.name)
    return submission


def load_frozen(path: Path) -> Config:
    """A point's configuration as it was submitted, checked again: a file that it names may have been removed."""
    text = path.read_text()
    note_left_out(path, text)
    return Stored(text).config()


def job_name(study: str, submission_id: str) -> str:
    """What squeue shows: the study, and which submission it is."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', study)[:40]}-{submission_id}"


def user() -> str:
    """Whose job SLURM takes it for, whatever LOGNAME says."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
