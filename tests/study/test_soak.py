"""The short form of benchmarks/soak.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.soak import soak
from tests.launch import open_to_others

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_random_faults_on_the_points_of_two_users(cluster: dict[str, str], tmp_path: Path) -> None:
    open_to_others(tmp_path)
    print(soak(tmp_path, cluster, points=4, faults=13, seed=0))
