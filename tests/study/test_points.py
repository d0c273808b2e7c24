"""Points of a sweep that are one run, or that wait in the queue with other data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fovea_detr.compose import load_config
from fovea_detr.errors import ConfigError
from fovea_detr.runs.points import point_name
from fovea_detr.runs.state import Standing
from fovea_detr.study.checks import compare_with_submission, refuse_twins
from fovea_detr.study.folder import Study, frozen_point
from fovea_detr.study.manifest import Point, Submission
from fovea_detr.study.standing import PointStatus
from tests.data.builders import edit, write_coco


def point(runs: Path, *overrides: str) -> Point:
    typed = ["experiment=tiny", "data=coco", *overrides]
    return Point(point_name(typed), load_config([*typed, f"runs={runs}", "study=s"]), {}, typed)


def test_points_of_one_configuration_are_refused_by_their_overrides(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"smooth=4 and fovea.smooth=4.0, would share"):
        refuse_twins([point(tmp_path, "smooth=4"), point(tmp_path, "fovea.smooth=4.0")])


@pytest.mark.parametrize("other", ["data.num_classes=8", "seed=1", "dynamic_scale=type1"])
def test_points_that_differ_are_not(tmp_path: Path, other: str) -> None:
    refuse_twins([point(tmp_path, "data.num_classes=7"), point(tmp_path, other)])


def test_a_queued_point_with_other_data_is_refused(tmp_path: Path) -> None:
    first = point(tmp_path, f"data.root={write_coco(tmp_path / 'A')}")
    submission = Submission.new(tmp_path / "s", [first], tmp_path, "local")
    submission.write([first])
    other = write_coco(tmp_path / "B")
    edit(other, lambda content: content["annotations"].pop())
    queued = PointStatus(first.name, Standing("queued"), {}, submission)
    compare_with_submission(first, queued)
    with pytest.raises(ConfigError, match="is queued on other data: the train annotations"):
        compare_with_submission(point(tmp_path, f"data.root={other}"), queued)


def test_the_same_code_is_that_of_the_first_submission(tmp_path: Path) -> None:
    """A later relaunch with other code does not change what `--same-code` means."""
    one = point(tmp_path, "seed=1")
    study = Study(tmp_path / "s")
    for code in ("first", "second"):
        submission = Submission.new(study.folder, [one], tmp_path / code, "local")
        submission.write([replace(one, frozen=None)])
    first = study.submissions()[0]
    again = frozen_point(first, one.name, same_code=True)
    assert again.snapshot == tmp_path / "first"
    assert again.frozen == first.config_file(one.name).read_text()
    assert frozen_point(first, one.name, same_code=False).snapshot is None
