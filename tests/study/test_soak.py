"""The short form of benchmarks/soak.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.soak import soak

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_random_faults_on_the_points_of_two_users(cluster: dict[str, str], tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)  # pytest's folders are its user's only
    print(soak(tmp_path, cluster, points=4, faults=13, seed=0))
