"""Where a point stands: what its folder says, and what SLURM says, which is believed where they disagree. No torch."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fovea_detr.runs.folder import RunFolder
from fovea_detr.study import local, queue
from fovea_detr.study.manifest import Manifest, Submission

STALE_SECONDS = 300.0  # a run outside SLURM that has not given a sign of life for so long is gone
AGAIN = ("new", "failed", "lost", "preempted", "cancelled")  # what the sweep's command submits


@dataclass
class Standing:
    """state: new, queued, running, preempted, failed, done (the folder's words); cancelled, lost (only SLURM knows)."""

    point: str
    state: str
    job: str = ""  # ARRAY_INDEX
    slurm: str = ""  # SLURM's word for the job
    reason: str = ""
    record: dict[str, Any] | None = None  # state.json
    submission: Submission | None = None  # the latest one

    @property
    def is_open(self) -> bool:
        return self.state in AGAIN


def standings(manifest: Manifest, points: Sequence[str], submissions: Sequence[Submission]) -> list[Standing]:
    """Of these points, in their order. SLURM is asked only for points that are not done and have been submitted."""
    latest = {point: submission for submission in submissions for point in submission.points}
    folders = {point: RunFolder(manifest.folder / point) for point in points}
    done = {point for point in points if folders[point].has_result()}
    asked = [latest[point] for point in points if point in latest and point not in done]
    tasks = {s.job_of(p) for p in points if p in latest and p not in done and (s := latest[p]).kind == "slurm"}
    jobs = queue.jobs(task for task in tasks if task is not None) | local_jobs(manifest, folders, asked)
    return [
        _done(folders[point], latest.get(point)) if point in done else stands(manifest, point, latest.get(point), jobs)
        for point in points
    ]


def local_jobs(
    manifest: Manifest, folders: dict[str, RunFolder], submissions: Iterable[Submission]
) -> dict[str, queue.Job]:
    """The points of this machine's own queues that are still to be run, in SLURM's words."""
    jobs: dict[str, queue.Job] = {}
    for submission in {s.id: s for s in submissions if s.kind == "local" and local.is_alive(manifest, s)}.values():
        for point in submission.points:
            state = ((folders[point].state() if point in folders else None) or {}).get("state")
            id_ = submission.job_of(point)
            if id_ is not None and state in ("queued", "running"):
                jobs[id_] = queue.Job(id_, submission.name, "PENDING" if state == "queued" else "RUNNING")
    return jobs


def stands(manifest: Manifest, point: str, submission: Submission | None, jobs: dict[str, queue.Job]) -> Standing:
    """One point that has no result."""
    folder = RunFolder(manifest.folder / point)
    record = folder.state() or {}
    id_ = (submission.job_of(point) if submission else None) or ""
    job = jobs.get(id_)
    here = Standing(point, "new", id_, job.state if job else "", "", record, submission)
    if job is not None and job.is_live:
        here.state = "queued" if job.is_waiting else "running"
        here.reason = job.reason if job.is_waiting else ""
    elif record.get("state") in ("failed", "preempted"):
        here.state, here.reason = record["state"], record.get("reason", "")
    elif record.get("state") in ("queued", "running"):
        here.state, here.reason = _without_a_word(record, job, last_words(manifest, submission, point))
    if job is not None and job.state == "CANCELLED" and here.state != "failed":
        here.state, here.reason = "cancelled", "cancelled in SLURM"
    return here


def _without_a_word(record: dict[str, Any], job: queue.Job | None, last_words: str) -> tuple[str, str]:
    """The folder says queued or running, and no job is alive: it was killed before it could say anything."""
    if job is None and "start" not in record and record["state"] == "running":
        if time.time() - record["time"] < STALE_SECONDS:
            return "running", "outside SLURM"
        return "lost", "no sign of life outside SLURM"
    if job is None:
        return "lost", "SLURM knows of no job"
    state = "failed" if job.state in ("FAILED", "OUT_OF_MEMORY") else "lost"
    said = ", ".join(part for part in (job.state, job.reason, last_words) if part)
    return state, f"killed without a word; SLURM says {said}"


def last_words(manifest: Manifest, submission: Submission | None, point: str) -> str:
    """What SLURM's own processes have left in the job's log, if it explains an end."""
    files = log_files(manifest, submission, point) if submission else []
    text = files[-1].read_text(errors="replace")[-4000:] if files else ""
    found = re.findall(r"(?i)exceeded [^\n]*memory limit|oom[- ]kill[^\n]*|out of memory[^\n]*", text)
    return found[-1].strip() if found else ""


def _done(folder: RunFolder, submission: Submission | None) -> Standing:
    job = (submission.job_of(folder.path.name) if submission else None) or ""
    return Standing(folder.path.name, "done", job, "", "", None, submission)


def adopt(manifest: Manifest, submissions: Iterable[Submission], *, write: bool) -> None:
    """Submissions that were cut short after sbatch and before their second line: their jobs are found by name.

    write: note it in the manifest; the caller holds the lock, so no sbatch can be under way.
    """
    unsure = [s for s in submissions if s.job is None and s.refused is None and s.kind == "slurm"]
    if not unsure:
        return
    by_name = {job.name: job for job in queue.jobs((), [s.name for s in unsure], min(s.time for s in unsure)).values()}
    for submission in unsure:
        job = by_name.get(submission.name)
        if job is not None:
            submission.job = job.id.partition("_")[0]
            if write:
                manifest.was_submitted(submission, submission.job, adopted=True)
        elif write:
            manifest.was_refused(submission, "SLURM knows of no job of this name: it was never sent")


def log_files(manifest: Manifest, submission: Submission, point: str, rank: int = 0) -> list[Path]:
    """What a rank of a point's job has printed, over all its starts."""
    folder = manifest.submission_folder(submission.id)
    return sorted(folder.glob(f"*_{submission.points.index(point)}_{rank}_log.*"))
