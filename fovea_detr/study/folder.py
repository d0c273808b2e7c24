"""A study: a folder of runs, what was submitted for it, and where each of its points stands. Imports no torch."""

from __future__ import annotations

import fcntl
import fnmatch
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fovea_detr.errors import UserError
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.locks import Lock
from fovea_detr.runs.state import LOST, Job, Standing, read_record, standing_of
from fovea_detr.study import local, manifest, queue, sbatch
from fovea_detr.study.manifest import Point, Submission, load_frozen

LOCK_SECONDS = 120.0
SCANCEL_JOBS = 500  # per command line


@dataclass
class PointStatus:
    """Where a point stands, and how it was submitted."""

    point: str
    standing: Standing
    record: dict[str, Any]  # state.json
    submission: Submission | None = None  # the latest one
    slurm: str = ""  # SLURM's word for the job

    @property
    def state(self) -> str:
        return self.standing.word

    @property
    def reason(self) -> str:
        return self.standing.reason

    @property
    def job(self) -> str:
        """ARRAY_INDEX; empty if it is not known."""
        return (self.submission.job_of(self.point) if self.submission else None) or ""


@dataclass(frozen=True)
class Study:
    """Only the holder of the lock submits; anybody may read at any time."""

    folder: Path

    @contextmanager
    def locked(self) -> Iterator[Lock]:
        """Exclude other commands. A child that inherits the lock's file number keeps the lock if we are killed."""
        end, lock = time.monotonic() + LOCK_SECONDS, Lock(self.folder, fcntl.flock)
        while not lock.acquire():
            if time.monotonic() >= end:
                raise UserError(
                    f"{self.folder}: another command has been submitting this study for {LOCK_SECONDS:.0f} s; "
                    "wait for it or stop it"
                )
            time.sleep(0.1)
        try:
            yield lock
        finally:
            lock.release()

    def submissions(self) -> list[Submission]:
        """All of them, oldest first."""
        return manifest.read(self.folder)

    def points(self, patterns: Sequence[str] = ()) -> list[str]:
        """All points of the study, or those that match. UserError for a pattern that matches none."""
        known = {point for submission in self.submissions() for point in submission.points}
        known |= {path.parent.name for path in self.folder.glob("*/state.json")}
        for pattern in patterns:
            if not any(_matches(point, pattern) for point in known):
                raise UserError(f"{self.folder}: no point is called {pattern}")
        return sorted(p for p in known if not patterns or any(_matches(p, pattern) for pattern in patterns))

    # ---- where its points stand --------------------------------------------------------------------------------------

    def current_states(self, points: Sequence[str], *, write: bool = False) -> list[PointStatus]:
        """Of these points, in their order. write: see `adopt`.

        SLURM is asked only about points that were submitted and have no result, and before their folders are read: a
        run may end in between.
        """
        submissions = self.submissions()
        self.adopt(submissions, write=write)
        latest = {point: submission for submission in submissions for point in submission.points}
        asked = [p for p in points if p in latest and latest[p].kind == "slurm" and not self._run(p).has_result()]
        jobs = queue.jobs(id_ for point in asked if (id_ := latest[point].job_of(point)) is not None)
        return [self._status(point, latest.get(point), jobs) for point in points]

    def _status(self, point: str, submission: Submission | None, jobs: dict[str, Job]) -> PointStatus:
        folder = self._run(point)
        record, has_result, damage = read_record(folder)
        if submission is None:
            return PointStatus(point, standing_of(folder.path, record, has_result, damage=damage), record)
        id_ = submission.job_of(point) or ""
        job = jobs.get(id_, Job(id_, submission.name, ""))
        if submission.kind == "local" and not has_result:
            job = local.job(submission, point, record)
        standing = standing_of(folder.path, record, has_result, job, submitted=True, damage=damage)
        if standing.word in ("failed", LOST) and record.get("state") != "failed":  # the run has written no reason
            reasons = (standing.reason, submission.oom_message(point))
            standing = replace(standing, reason=", ".join(filter(None, reasons)))
        return PointStatus(point, standing, record, submission, job.state)

    def _run(self, point: str) -> RunFolder:
        return RunFolder(self.folder / point)

    def adopt(self, submissions: Iterable[Submission], *, write: bool) -> None:
        """Find the jobs of submissions that were cut short between sbatch and their second line, by their names.

        write: record what is found; the caller holds the lock, so no sbatch can be under way.
        """
        unsure = [s for s in submissions if s.job is None and s.refused is None and s.kind == "slurm"]
        if not unsure:
            return
        found = queue.jobs((), [s.name for s in unsure], min(s.time for s in unsure)).values()
        by_name = {job.name: job for job in found}
        for submission in unsure:
            job = by_name.get(submission.name)
            if job is not None:
                submission.job = job.id.partition("_")[0]
                if write:
                    submission.record_job(submission.job, adopted=True)
            elif write:
                submission.record_refusal("SLURM knows of no job of this name: it was never sent")

    # ---- what is done about them -------------------------------------------------------------------------------------

    def submit(self, points: Sequence[Point], code: Path, kind: str, lock: int) -> Submission:
        """Points that ask for the same resources, to the queue. UserError if it does not take them.

        All that a job reads is on disk before. If sbatch fails, SLURM is asked whether it has the job all the same:
        its answer may be lost. lock: the file number of the study's lock.
        """
        submission = Submission.new(self.folder, points, code, kind)
        submission.write(points)
        for point in points:
            self._run(point.name).write_state("queued", submission=submission.id)
        try:
            submission.record_job(local.start(submission) if kind == "local" else sbatch.send(submission, lock))
        except queue.SlurmError as error:
            self.adopt([submission], write=True)
            if submission.job is None:
                for point in points:
                    self._run(point.name).write_state("failed", reason=f"not submitted: {error}")
                raise UserError(f"nothing was submitted: {error}") from None
        return submission

    def cancel(self, statuses: Sequence[PointStatus]) -> None:
        """End the jobs of these points. What the runs have saved stays."""
        jobs = [status.job for status in statuses if not status.job.startswith("local")]
        for start in range(0, len(jobs), SCANCEL_JOBS):
            queue.command(["scancel", *jobs[start : start + SCANCEL_JOBS]])
        for pid in {int(s.job.split("-")[1].split("_")[0]) for s in statuses if s.job.startswith("local")}:
            queue.command(["kill", str(pid)])


def frozen_point(submission: Submission, name: str, *, same_code: bool) -> Point:
    """A point that was submitted before, with its frozen configuration."""
    file = submission.config_file(name)
    point = Point(name, load_frozen(file), submission.resources)
    return replace(point, snapshot=Path(submission.snapshot), frozen=file.read_text()) if same_code else point


def _matches(point: str, pattern: str) -> bool:
    return point == pattern or fnmatch.fnmatchcase(point, pattern)
