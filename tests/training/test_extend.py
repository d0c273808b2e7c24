"""`extend=N`: a run of its own that begins with the final state of the same run without it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fovea_detr.compose import load_config
from fovea_detr.config.schema import Schedule
from fovea_detr.errors import ConfigError, RunFolderError
from fovea_detr.runs.extension import origin_of
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.points import Folders
from fovea_detr.runs.stored import config_text
from fovea_detr.training.optim import learning_rate_factor
from tests.launch import run, run_well, start
from tests.training.test_resume import SIGNALS, assert_equal_runs, kill_while_training

STEP = ("experiment=tiny", "schedule.kind=step", "schedule.lr_drop=2", "schedule.warmup=0", "model.dropout=0.1")
STEP += ("data.train_images=160", "data.val_images=21", "checkpoint.minutes=0.003")


@pytest.mark.parametrize("extend", [8, 3])
def test_an_end_that_is_not_beyond_the_schedules_is_refused(extend: int) -> None:
    with pytest.raises(ConfigError, match=rf"extend={extend} is not beyond .*schedule\.epochs=8.*extend=28"):
        load_config(["experiment=tiny", f"extend={extend}"])


def test_an_evaluation_extends_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.pt").touch()
    with pytest.raises(ConfigError, match="extend=70 trains on, and mode=eval trains nothing"):
        load_config(["mode=eval", f"weights={tmp_path / 'a.pt'}", "extend=70"])


def test_the_learning_rate_goes_on_and_the_epochs_before_keep_theirs() -> None:
    step = Schedule(kind="step", epochs=3, lr_drop=2)
    assert [learning_rate_factor(step, epoch, 1) for epoch in range(5)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    cosine = Schedule(kind="cosine", epochs=3, lr_drop=None)
    assert [learning_rate_factor(cosine, epoch, 1) for epoch in range(2, 9)] == pytest.approx([0.01] * 7)


def stored(path: Path, *overrides: str, done: bool) -> RunFolder:
    folder = RunFolder(path)
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(config_text(load_config([*overrides])))
    if done:
        folder.write_result({"total_batch_size": 8})
    return folder


def test_what_it_begins_with_must_be_done_and_have_its_checkpoint(tmp_path: Path) -> None:
    config = load_config(["experiment=tiny", "extend=12", f"runs={tmp_path}"])
    new = RunFolder(tmp_path / "tiny" / "extend=12")
    with pytest.raises(RunFolderError, match="has no run of this configuration without extend: first run the same"):
        origin_of(config, new)
    folder = stored(tmp_path / "tiny" / "any_name", "experiment=tiny", done=False)
    with pytest.raises(RunFolderError, match="any_name is not done: first run the same command without extend"):
        origin_of(config, new)
    folder.write_result({})
    with pytest.raises(RunFolderError, match=r"any_name/checkpoint\.pt is gone"):
        origin_of(config, new)
    folder.checkpoint_path.touch()
    assert origin_of(config, new).path == folder.path  # type: ignore[union-attr]
    assert origin_of(replace(config, extend=None), new) is None
    new.path.mkdir()
    new.checkpoint_path.touch()
    assert origin_of(config, new) is None, "it has a state of its own, and no longer needs the other folder"


def test_more_epochs_in_another_folder_are_named_together_with_extend(tmp_path: Path) -> None:
    for epochs in (4, 6, 9):
        stored(tmp_path / f"e{epochs}", "experiment=tiny", f"schedule.epochs={epochs}", done=True)
    folders = Folders(tmp_path)
    note = folders.shorter("new", load_config(["experiment=tiny", "schedule.epochs=8"]))
    assert note is not None
    assert note.startswith("note: e6 is this run with schedule.epochs=6; with schedule.epochs=8 it starts afresh")
    assert note.endswith("schedule.epochs=6 extend=8")
    assert folders.shorter("e9", load_config(["experiment=tiny", "schedule.epochs=9"])) is None, "it is there already"
    assert folders.shorter("new", load_config(["experiment=tiny", "schedule.epochs=3"])) is None
    assert folders.shorter("new", load_config(["experiment=tiny", "schedule.epochs=8", "seed=1"])) is None


@pytest.mark.slow
def test_an_extended_run_killed_and_resumed_equals_one_that_was_longer_from_the_start(tmp_path: Path) -> None:
    arguments = (*STEP, f"data.cache={tmp_path / 'cache'}", f"runs={tmp_path}")
    missing = run(*arguments, "schedule.epochs=3", "extend=5", "study=a")
    assert missing.returncode == 2
    assert "first run the same command without extend to its end" in missing.stderr
    assert not list((tmp_path / "a").glob("*/state.json"))
    run_well(*arguments, "schedule.epochs=3", "study=a")
    extended = (*arguments, "schedule.epochs=3", "extend=5", "study=a")
    process = start(*extended)
    kill_while_training(process, tmp_path / "a", SIGNALS[1], 0.5, ranks=1)
    run_well(*extended)
    (path,) = (tmp_path / "a").glob("*extend=5*")
    folder = RunFolder(path)
    longer = run(*arguments, "schedule.epochs=5", "study=a")
    assert "it starts afresh, in a folder of its own; to go on from that one's final state: schedule.epochs=3" in (
        longer.stderr
    )
    (straight,) = [path for path in (tmp_path / "a").glob("*schedule.epochs=5*") if "extend" not in path.name]
    assert_equal_runs(RunFolder(straight), folder)
    assert [line["epoch"] for line in folder.history()] == [1, 2, 3, 4, 5]
    facts = json.loads((path / "provenance.json").read_text())["extends"]
    assert Path(facts["folder"]).name == next(p.name for p in path.parent.glob("*epochs=3*") if "extend" not in p.name)
    assert {"run", "checkpoint_sha256"} < facts.keys()
    assert "done already" in run_well(*extended)
