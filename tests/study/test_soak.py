"""The short form of benchmarks/soak.py."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from benchmarks.soak import soak

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_random_faults_on_the_points_of_two_users(cluster: dict[str, str]) -> None:
    """In a folder of its own: every start of pytest closes its folder to other users."""
    with tempfile.TemporaryDirectory(prefix="soak", dir="/tmp") as base:
        print(soak(Path(base), cluster, points=4, faults=13, seed=0))
