"""Failed points that start again by themselves: `cluster.retries` times, and never for what would fail again.

`python -m fovea_detr.study.retry SUBMISSION_FOLDER NUMBER`: a batch script calls it when the point's ranks have failed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fovea_detr import errors
from fovea_detr.runs.folder import RunFolder
from fovea_detr.study import queue
from fovea_detr.study.manifest import Submission


def is_due(submission: Submission, point: str, record: Mapping[str, Any] | None) -> bool:
    """Whether a failed point is to start again; counts it. record: its state.json.

    Not after an error that a user has to correct: NaN, bad data, a bad configuration, too little memory; and not if the
    run was stopped by a signal.
    """
    retries, state = int(submission.resources.get("retries") or 0), record or {}
    kind = getattr(errors, str(state.get("kind")), Exception)
    if not retries or state.get("state") in ("preempted", "done") or issubclass(kind, errors.UserError):
        return False
    tries = submission.exit_file(point).with_suffix(".tries")
    with tries.open("ab") as file:
        if file.tell() >= retries:
            return False
        file.write(b".")
    print(f"retry {tries.stat().st_size} of {retries}: {state.get('reason') or 'no reason given'}", flush=True)
    return True


def main(folder: Path, number: int) -> None:
    submission = Submission.load(folder)
    point = submission.points[number]
    if is_due(submission, point, RunFolder(folder.parent.parent / point).state()):
        job = os.environ.get("SLURM_ARRAY_JOB_ID", "")
        queue.command(["scontrol", "requeue", f"{job}_{os.environ['SLURM_ARRAY_TASK_ID']}"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
