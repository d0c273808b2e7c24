"""The submissions of a study on disk: STUDY/manifest.jsonl, with a line before every sbatch and one after it.

The job's name carries the submission's id, so a job whose second line is missing (the shell was killed in between) is
found by its name. All that the jobs of a submission read and print is in STUDY/.submissions/ID.
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fovea_detr.config.schema import Config
from fovea_detr.runs.files import write_text
from fovea_detr.runs.identity import Stored, config_text, note_left_out

OUT_OF_MEMORY = re.compile(r"exceeded [^\n]*memory limit|oom[- ]kill[^\n]*|out of memory[^\n]*", re.IGNORECASE)
NOT_IN_FACTS = ("folder", "job", "refused")


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
    command: list[str] = field(default_factory=list)
    user: str = ""
    time: float = 0.0
    resources: dict[str, Any] = field(default_factory=dict)  # what the queue was asked for, to ask for it again
    job: str | None = None  # of the array; None: not known (yet)
    refused: str | None = None  # why the queue did not take it

    @classmethod
    def new(cls, study: Path, points: Sequence[Point], snapshot: Path, kind: str, id_: str | None = None) -> Submission:
        """Of points that ask the queue for the same resources. Writes nothing."""
        folder = study / ".submissions" / (id_ or f"{time.strftime('%m%d-%H%M%S')}-{secrets.token_hex(3)}")
        names, command = [point.name for point in points], [os.path.basename(sys.executable), *sys.argv]
        facts = {"user": getpass.getuser(), "time": time.time(), "resources": points[0].resources}
        return cls(folder, job_name(study.name, folder.name), names, str(snapshot), kind, command, **facts)

    @classmethod
    def load(cls, folder: Path) -> Submission:
        """From its own folder, as a job does."""
        return _from_facts(folder, json.loads((folder / "submission.json").read_text()))

    @property
    def id(self) -> str:
        return self.folder.name

    def job_of(self, point: str) -> str | None:
        """SLURM's id of the point's job, `ARRAY_INDEX`."""
        return None if self.job is None else f"{self.job}_{self.points.index(point)}"

    def config_file(self, point: str) -> Path:
        """The configuration of a point, frozen when it was submitted."""
        return self.folder / f"{self.points.index(point)}.yaml"

    def log_files(self, point: str, rank: int = 0) -> list[Path]:
        """What a rank of a point's job has printed, over all its starts."""
        return sorted(self.folder.glob(f"*_{self.points.index(point)}_{rank}_log.*"))

    def oom_message(self, point: str) -> str:
        """SLURM's own message in the job's log that the memory limit was exceeded; empty if there is none."""
        files = self.log_files(point)
        found = OUT_OF_MEMORY.findall(files[-1].read_text(errors="replace")[-4000:]) if files else []
        return found[-1].strip() if found else ""

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


def read(study: Path) -> list[Submission]:
    """All submissions, oldest first. A last line that a crash cut short was never acted on, and is left out."""
    found: dict[str, Submission] = {}
    path = manifest_file(study)
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        kind = event.pop("event")
        if kind == "submit":
            found[event["id"]] = _from_facts(study / ".submissions" / event["id"], event)
        elif event["id"] in found:
            setattr(found[event["id"]], "job" if kind == "submitted" else "refused", event["value"])
    return list(found.values())


def _from_facts(folder: Path, facts: dict[str, Any]) -> Submission:
    return Submission(folder, **{key: value for key, value in facts.items() if key != "id"})


def load_frozen(path: Path) -> Config:
    """A point's configuration as it was submitted, checked again: a file that it names may have been removed."""
    text = path.read_text()
    note_left_out(path, text)
    return Stored(text).config()


def job_name(study: str, submission_id: str) -> str:
    """What squeue shows: the study, and which submission it is."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', study)[:40]}-{submission_id}"
