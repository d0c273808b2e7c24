"""A study: a folder of runs, what was submitted for it, and where each of its points stands. Imports no torch."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from fovea_detr.errors import UserError, tell
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.locks import Lock
from fovea_detr.runs.state import read_record, standing_of
from fovea_detr.study import local, manifest, queue, sbatch
from fovea_detr.study.manifest import Point, Submission, load_frozen
from fovea_detr.study.names import matching
from fovea_detr.study.standing import Jobs, PointStatus, find_job, in_full, is_here

LOCK_SECONDS = 120.0
SCANCEL_JOBS = 500  # per command line
DENIED = "permission denied"
WRITERS = 16  # threads: each file waits for the disk


@dataclass(frozen=True)
class Study:
    """Only the holder of the lock submits; anybody may read at any time."""

    folder: Path

    @contextmanager
    def locked(self) -> Iterator[Lock]:
        """Exclude other commands. A child that inherits the lock's file number keeps the lock if we are killed.

        What is written meanwhile, by jobs too, may be written by the group if the folder may. UserError for a file that
        cannot be written.
        """
        end, lock = time.monotonic() + LOCK_SECONDS, Lock(self.folder, fcntl.flock)
        before = share_as_parent(self.folder)
        try:
            while not lock.acquire():
                if time.monotonic() >= end:
                    raise UserError(
                        f"{self.folder}: another command has been submitting this study for {LOCK_SECONDS:.0f} s; "
                        "wait for it or stop it"
                    )
                time.sleep(0.1)
            yield lock
        except OSError as error:
            raise UserError(
                f"{error.filename or self.folder}: cannot be written ({error.strerror}); ask its owner for "
                "group write permission (chmod -R g+w), make room, or choose another study=NAME"
            ) from None
        finally:
            lock.release()
            os.umask(before)

    def submissions(self) -> list[Submission]:
        """All of them, oldest first."""
        return manifest.read(self.folder)

    def points(self, patterns: Sequence[str] = ()) -> list[str]:
        """All points of the study, or those that match. UserError for a pattern that matches none."""
        known = {point for submission in self.submissions() for point in submission.points}
        known |= {path.parent.name for path in self.folder.glob("*/state.json")}
        found: set[str] = set()
        for pattern in patterns:
            meant = matching(known, pattern)
            if not meant:
                raise UserError(f"{self.folder}: no point is called {pattern}")
            found.update(meant)
        return sorted(found if patterns else known)

    # ---- where its points stand --------------------------------------------------------------------------------------

    def current_states(self, points: Sequence[str], *, write: bool = False) -> list[PointStatus]:
        """Of these points, in their order. write: see `adopt`.

        SLURM is asked only about points that were submitted and have no result, and before their folders are read: a
        run may end in between.
        """
        submissions = self.submissions()
        self.adopt(submissions, write=write)
        latest = {point: submission for submission in submissions for point in submission.points}
        asked = [p for p in points if p in latest and is_here(latest[p]) and latest[p].job and not self._has_result(p)]
        since = min((latest[point].time for point in asked), default=0.0)
        jobs = queue.jobs(((latest[point].name, latest[point].job_of(point)) for point in asked), since)
        return [self._status(point, latest.get(point), jobs) for point in points]

    def _status(self, point: str, submission: Submission | None, jobs: Jobs) -> PointStatus:
        folder = self._run(point)
        record, has_result, damage = read_record(folder)
        if submission is None:
            return PointStatus(point, standing_of(folder.path, record, has_result, damage=damage), record)
        job = submission.end_of(point) if has_result else find_job(submission, point, record, jobs)
        standing = standing_of(folder.path, record, has_result, job, submitted=True, damage=damage)
        if not has_result:
            standing = in_full(standing, submission, point, record, job)
        return PointStatus(point, standing, record, submission, job.state if job else "")

    def _run(self, point: str) -> RunFolder:
        return RunFolder(self.folder / point)

    def _has_result(self, point: str) -> bool:
        return self._run(point).has_result()

    def adopt(self, submissions: Iterable[Submission], *, write: bool) -> None:
        """Find the jobs of submissions that were cut short between sbatch and their second line, by their names.

        write: record what is found; the caller holds the lock, so no sbatch can be under way.
        """
        unsure = [s for s in submissions if s.job is None and s.refused is None and is_here(s)]
        if not unsure:
            return
        found = queue.jobs(((s.name, None) for s in unsure), min(s.time for s in unsure)).values()
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
        """Points that ask for the same resources, to the queue. SlurmError if it does not take them.

        All that a job reads is on disk before. If sbatch fails, SLURM is asked whether it has the job all the same:
        its answer may be lost. lock: the file number of the study's lock.
        """
        cluster = local.machine() if kind == "local" else queue.cluster()
        submission = Submission.new(self.folder, points, code, kind, cluster)
        submission.write(points)
        self._write_states(points, "queued", submission=submission.id)
        try:
            submission.record_job(local.start(submission) if kind == "local" else sbatch.send(submission, lock))
        except queue.SlurmError as error:
            if not error.is_final:
                self._ask_after(submission, error)
            if submission.job is None:
                submission.record_refusal(str(error))
                self._write_states(points, "failed", reason=f"not submitted: {error}")
                raise
            submission.record_job(submission.job, adopted=True)
        return submission

    def _ask_after(self, submission: Submission, error: queue.SlurmError) -> None:
        try:
            self.adopt([submission], write=False)
        except queue.SlurmError as other:
            raise UserError(
                f"{error}; whether SLURM took the jobs is not known ({other}): the same command will find out"
            ) from None

    def _write_states(self, points: Sequence[Point], state: str, **details: str) -> None:
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(lambda point: self._run(point.name).write_state(state, **details), points))

    def cancel(self, statuses: Sequence[PointStatus]) -> None:
        """End the jobs of these points, which SLURM has just named as ours. What the runs have saved stays.

        By id alone: `scancel --jobname=NAME 12_3` ends the whole array 12 (seen with SLURM 22.05).
        """
        sent: dict[str, list[PointStatus]] = {}
        for status in statuses:
            if status.submission is not None:
                sent.setdefault(status.submission.id, []).append(status)
        for group in sent.values():
            submission = group[0].submission
            assert submission is not None
            try:
                submission.record_cancel([status.point for status in group])
            except OSError as error:  # a full disk keeps nobody from cancelling
                tell(f"note: {self.folder}: the cancellation is not recorded ({error.strerror})")
            jobs = [status.job for status in group if submission.kind == "slurm"]
            for start in range(0, len(jobs), SCANCEL_JOBS):
                try:
                    queue.command(["scancel", *jobs[start : start + SCANCEL_JOBS]])
                except queue.SlurmError as error:
                    if any("Kill job error" not in line or DENIED in line for line in str(error).split("; ")):
                        by = f" (submitted by {submission.user})" if submission.user != manifest.user() else ""
                        raise UserError(f"{str(error).partition(';')[0]}{by}") from None  # else: it has ended since
            if submission.kind == "local":
                local.wait_until_ended((submission, status.point) for status in group)


def frozen_point(submission: Submission, name: str, *, same_code: bool) -> Point:
    """A point that was submitted before, with its frozen configuration, in the study's folder as it lies now."""
    file, study = submission.config_file(name), submission.folder.parent.parent
    here = {"runs": str(study.parent), "study": study.name}
    point = Point(name, replace(load_frozen(file), **here), submission.resources)
    if not same_code:
        return point
    text = file.read_text()
    for key, value in here.items():
        line = yaml.safe_dump({key: value}, width=1 << 20)
        text = re.sub(rf"^{key}:.*\n(?:[ -].*\n)*", lambda _, line=line: line, text, count=1, flags=re.MULTILINE)
    return replace(point, snapshot=Path(submission.snapshot), frozen=text)


def share_as_parent(folder: Path) -> int:
    """Let the group write what this process creates if it may write the folder -> the umask as it was."""
    present = next(path for path in (folder, *folder.parents) if path.exists())
    mode, before = present.stat().st_mode, os.umask(0o077)
    shared = mode & stat.S_IWGRP and not mode & stat.S_ISVTX  # not /tmp
    os.umask(before & ~0o070 if shared else before)
    return before
