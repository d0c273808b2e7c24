"""Identity as a user meets it: one run per configuration and data set, by whatever command."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from tests.data.builders import edit, write_coco
from tests.launch import only_folder, run, run_well, start, wait_for

pytestmark = pytest.mark.slow
SMALL = ["experiment=tiny", "data=coco", "data.recipe=tiny", "data.workers=0", "schedule.batch_size=4"]
SMALL += ["evaluation.timed_images=2", "threads=1"]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    for name, width in (("A", 64), ("B", 48)):
        write_coco(tmp_path / name, images=[(64, width)] * 8)
    return [*SMALL, f"runs={tmp_path / 'runs'}", "schedule.epochs=1", f"data.root={tmp_path / 'A'}"]


def with_root(command: list[str], root: Path) -> list[str]:
    return [*command[:-1], f"data.root={root}"]


def refusal(*overrides: str) -> str:
    done = run(*overrides)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_other_data_under_a_finished_run_is_refused_and_moved_data_is_not(command: list[str], tmp_path: Path) -> None:
    run_well(*command)
    said = refusal(*with_root(command, tmp_path / "B"))
    known = json.loads((only_folder(tmp_path / "runs").path / "provenance.json").read_text())["data"]
    assert "holds a run on other data" in said
    assert any(fingerprint in said for fingerprint in known.values())
    shutil.copytree(tmp_path / "A", tmp_path / "moved")
    assert "done already" in run_well(*with_root(command, tmp_path / "moved"))
    edit(tmp_path / "moved", lambda content: content["annotations"].pop())
    assert "train annotations" in refusal(*with_root(command, tmp_path / "moved"))


def test_an_interrupted_run_does_not_continue_on_other_data(command: list[str], tmp_path: Path) -> None:
    long = [*command[:-2], "schedule.epochs=500", command[-1]]
    process = start(*long)
    state = tmp_path / "runs" / "tiny"
    wait_for(lambda: any(state.glob("*/history.jsonl")), process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    epochs = len(only_folder(tmp_path / "runs").history())
    assert "holds a run on other data" in refusal(*with_root(long, tmp_path / "B"))
    assert len(only_folder(tmp_path / "runs").history()) == epochs
    assert (only_folder(tmp_path / "runs").state() or {})["state"] == "preempted"


def test_one_configuration_has_one_folder(command: list[str], tmp_path: Path) -> None:
    run_well(*command, "smooth=8")
    for spelling in ("fovea.smooth=8", "fovea.smooth=8.0", "smooth=8 data.in_memory=False"):
        assert "done already" in run_well(*command, *spelling.split())
    assert only_folder(tmp_path / "runs").path.name.endswith("smooth=8")


def test_a_run_of_an_older_schema_goes_on(command: list[str], tmp_path: Path) -> None:
    """Its file lacks an axis, names a class that is gone, and holds a key that was dropped."""
    run_well(*command)
    folder = only_folder(tmp_path / "runs")
    content = yaml.safe_load(folder.config_text() or "")
    del content["kernel"]
    content["mixture"]["_target_"] = "fovea_detr.fovea.mixture.Gone"
    content["model"]["dropped"] = 7
    folder.write_config(yaml.safe_dump(content, sort_keys=False))
    (folder.path / "result.json").unlink()
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert "model.dropped=7" in done.stderr
    assert folder.result() is not None


def test_data_of_ones_own_is_not_replaced_by_generated_shapes(tmp_path: Path) -> None:
    said = refusal("experiment=tiny", f"data.root={tmp_path}", f"runs={tmp_path / 'runs'}")
    assert "add data=coco" in said


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["smooth=4,8", "fovea.smooth=6"], ["smooth='4' and smooth='8'", "fovea.smooth=6"]),
        (["fovea.smooth=8,8.0"], ["fovea.smooth=8 and fovea.smooth=8.0"]),
        (["seed=0,1", "seed=2,3"], ["seed=0,1 and seed=2,3", "seed=0,1,2,3"]),
        (["data.in_memory=True,true"], ["would share the folder"]),
    ],
)
@pytest.mark.parametrize("launcher", ["basic", "submitit_slurm", "submitit_local"])
def test_a_sweep_does_not_plan_one_run_twice(
    command: list[str], tmp_path: Path, launcher: str, overrides: list[str], words: list[str]
) -> None:
    said = refusal("-m", *command, *overrides, f"hydra/launcher={launcher}")
    assert all(word in said for word in words), said
    assert not list((tmp_path / "runs").glob("*/*/config.yaml"))
