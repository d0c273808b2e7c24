"""Which failed points start again by themselves, and how often."""

from __future__ import annotations

from pathlib import Path

import pytest

from fovea_detr.study.manifest import Submission
from fovea_detr.study.retry import is_due


def submission(folder: Path, retries: int) -> Submission:
    folder.mkdir(exist_ok=True)
    return Submission(folder, "name", ["a"], "/code", resources={"retries": retries})


@pytest.mark.parametrize(
    ("record", "due"),
    [
        ({"state": "failed", "kind": "RuntimeError"}, True),
        ({"state": "failed"}, True),
        ({"state": "queued"}, True),  # it was killed before it could write
        (None, True),
        ({"state": "running"}, True),
        ({"state": "failed", "kind": "NonFiniteError"}, False),
        ({"state": "failed", "kind": "DataError"}, False),
        ({"state": "failed", "kind": "ConfigError"}, False),
        ({"state": "failed", "kind": "OutOfMemoryError"}, False),
        ({"state": "preempted"}, False),
        ({"state": "done"}, False),
    ],
)
def test_what_would_fail_again_is_not_tried_again(tmp_path: Path, record: dict[str, str] | None, due: bool) -> None:
    assert is_due(submission(tmp_path, 1), "a", record) is due


def test_retries_are_counted_and_none_is_the_default(tmp_path: Path) -> None:
    failed = {"state": "failed", "kind": "RuntimeError"}
    assert [is_due(submission(tmp_path / "two", 2), "a", failed) for _ in range(4)] == [True, True, False, False]
    assert not is_due(submission(tmp_path / "none", 0), "a", failed)
