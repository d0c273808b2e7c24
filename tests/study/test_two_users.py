"""Two system users and one study, on a real SLURM: one submits, the other sees. Needs root, to be two users."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch import open_to_others
from tests.study.people import USERS, Person, cancel_all, make_users

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


@pytest.fixture
def people(cluster: dict[str, str], tmp_path: Path) -> Iterator[tuple[Person, Person, Path]]:
    """Ann, Bob and a folder of their group."""
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    open_to_others(tmp_path)
    make_users(tmp_path / "shared")
    ann, bob = (Person(name, tmp_path, cluster) for name in USERS)
    if not ann.has_packages:
        pytest.skip("no interpreter that other users may start has the packages")
    yield ann, bob, tmp_path / "shared/runs"
    cancel_all(cluster)


HELD = ("seed=0,1,2", "+cluster.extra.hold=true")


def test_both_submit_at_once_and_every_point_is_submitted_once(
    people: tuple[Person, Person, Path], cluster: dict[str, str]
) -> None:
    ann, bob, runs = people
    both = [person.sweep(runs, *HELD) for person in (ann, bob)]
    answers = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    seen = next(out for out, _ in answers if "nothing to submit" in out)
    assert "3 submitted" in next(out for out, _ in answers if out != seen)
    owner, other = (ann, bob) if f"by {ann.name}" in seen else (bob, ann)
    assert seen.count("queued     job") == seen.count(f"by {owner.name}") == 3
    listed = subprocess.run(["squeue", "-h", "-r", "-o", "%u"], env=cluster, capture_output=True, text=True).stdout
    assert listed.split() == [owner.name] * 3, "no point twice"

    refused = other.verb(runs, "cancel", "seed=1")
    assert refused.returncode == 2
    assert "denied" in refused.stderr
    assert f"(submitted by {owner.name})" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert "3 queued" in other.verb(runs, "status").stdout, "what was not cancelled is not called so"

    assert owner.verb(runs, "cancel", "seed=1").returncode == 0
    assert f"by {owner.name}" in other.verb(runs, "status", "seed=1").stdout
    taken = other.sweep(runs, *HELD).communicate(timeout=200)
    assert "2 queued, 1 submitted" in taken[0] or "1 submitted, 2 queued" in taken[0] or "1 submitted" in taken[0], (
        taken
    )
    for path in [runs / "ours", *(runs / "ours").rglob("*")]:
        if not path.is_symlink() and ".snapshots" not in path.parts:
            assert path.stat().st_mode & 0o020, f"{path} is not the group's"


def test_a_study_that_is_not_the_groups_is_one_line_and_hides_no_other(people: tuple[Person, Person, Path]) -> None:
    ann, bob, runs = people
    assert ann.sweep(runs, *HELD).wait(200) == 0
    (runs / "ours").chmod(0o2755)
    for path in (runs / "ours").rglob("*"):
        path.chmod(path.stat().st_mode & ~0o022)
    refused = bob.sweep(runs, "seed=7")
    _, error = refused.communicate(timeout=200)
    assert refused.returncode == 2
    assert len(error.splitlines()) == 1, error
    assert str(runs / "ours") in error
    (runs / "ours").rename(runs / "hidden")
    (runs / "hidden").chmod(0o700)
    assert bob.sweep(runs, *HELD).wait(200) == 0
    table = bob.start_python("analysis/collect.py", "--runs", str(runs))
    out, error = table.communicate(timeout=100)
    assert table.returncode == 0, error
    assert "hidden: left out" in error
    assert "seed=2" in out or "queued" in out
