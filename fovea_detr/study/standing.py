"""Where a point stands: what its folder, its submission, its logs and the queue tell, put together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fovea_detr.runs.state import LOST, Job, Standing
from fovea_detr.study import local, manifest, queue, sbatch
from fovea_detr.study.manifest import Submission

Jobs = dict[tuple[str, str], queue.Asked]


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


def is_here(submission: Submission) -> bool:
    """Whether the SLURM that we speak to is the one that it was sent to."""
    return submission.kind == "slurm" and (not submission.cluster or queue.cluster() in ("", submission.cluster))


def find_job(submission: Submission, point: str, record: dict[str, Any], jobs: Jobs) -> Job | None:
    """The point's job by id and name; without a state if the queue does not know it. None: we cannot ask about it."""
    if submission.kind == "local":
        return local.job(submission, point, record)
    found = jobs.get((submission.name, submission.job_of(point) or ""))
    if found is not None and found.state:
        return found
    if ended := submission.end_of(point):
        return ended
    if submission.job is None and time.time() - submission.time < sbatch.SUBMIT_SECONDS:
        return Job("", submission.name, "PENDING", "being submitted")
    hidden = submission.user != manifest.user() and "jobs" in queue.settings().get("PrivateData", "")
    return None if hidden or not is_here(submission) else Job(submission.job_of(point) or "", submission.name, "")


def in_full(
    standing: Standing, submission: Submission, point: str, record: dict[str, Any], job: Job | None
) -> Standing:
    """The standing of a point without a result, with what its submission and the job's logs tell."""
    ends = job is None or not job.is_live or job.state == "COMPLETING"
    if point in submission.cancelled and ends:
        return Standing("cancelled", f"by {submission.cancelled[point]}")
    if standing.is_live:
        by = "" if submission.user in ("", manifest.user()) else f"by {submission.user}"
        where = f"on {submission.cluster}" if job is None and submission.cluster else ""
        held = "held" in standing.reason.lower()  # SLURM's words: JobHeldUser, launch failed requeued held
        release = f"`scontrol release {job.id}` lets it go on" if held and job is not None else ""
        return replace(standing, reason=", ".join(filter(None, (by, where, standing.reason, release))))
    if standing.word == "preempted" and submission.kind == "slurm" and job is not None and job.state:
        says = ", ".join(filter(None, (job.state, job.reason)))
        return replace(standing, reason=f"{standing.reason}; its job has ended: SLURM says {says}")
    if standing.word in ("failed", LOST) and record.get("state") != "failed":  # the run has written no reason
        error = submission.last_error(point)
        silent = standing.reason.removeprefix("killed; no message was written; ")
        return replace(standing, reason=f"{error} ({silent})" if error else standing.reason)
    return standing


def foreign_jobs(statuses: Sequence[PointStatus]) -> Iterator[str]:
    """A line for each point whose job's id belongs to another job by now: the controller has begun to count anew."""
    ended = [s for s in statuses if s.job and s.submission and not s.standing.is_live and is_here(s.submission)]
    holders = queue.holders(status.job for status in ended) if ended else {}
    for status in ended:
        holder = holders.get(status.job)
        if holder is not None and status.submission is not None and holder.name != status.submission.name:
            yield f"note: job {status.job} is now {holder.name} of {holder.user}, not {status.point}: not touched"
