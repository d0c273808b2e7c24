"""Which points a pattern means, and their short labels."""

from __future__ import annotations

import pytest

from fovea_detr.study.names import labels, matching

POINTS = ["dynamic_scale=type1,seed=1", "dynamic_scale=type1,seed=11", "dynamic_scale=type2,seed=1", "seed=1"]


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("*seed=1*", [0, 2, 3]),
        ("seed=1", [3]),  # the whole name of one
        ("seed=11", [1]),
        ("dynamic_scale=type1", [0, 1]),
        ("seed=1,dynamic_scale=type1", [0]),
        ("*seed=1?", [1]),
        ("dynamic_scale=type1,seed=1*", [0, 1]),
        ("*type2*", [2]),
        ("*", [0, 1, 2, 3]),
        ("seed=2", []),
        ("", []),
    ],
)
def test_a_pattern_means_whole_overrides(pattern: str, meant: list[int]) -> None:
    assert matching(POINTS, pattern) == [POINTS[n] for n in meant]


def test_labels_leave_out_what_all_points_share() -> None:
    shared = "data.train_images=64,experiment=tiny"
    points = [f"{shared},seed={n}" for n in range(3)]
    assert list(labels(points).values()) == ["seed=0", "seed=1", "seed=2"]
    assert labels(points[:1]) == {points[0]: points[0]}
    assert labels([*points, shared])[shared] == shared
    assert labels([]) == {}
