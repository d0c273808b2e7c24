"""What makes two configurations one run, and which folder is whose; on a study of folders of an older version."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.reading.folders import find_runs
from analysis.tables.table import make_table
from fovea_detr.compose import load_config
from fovea_detr.config.schema import CONF_DIR, Config
from fovea_detr.errors import ConfigError, RunFolderError
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.identity import differences, note_left_out, refuse_other_config, refuse_other_data
from fovea_detr.runs.points import Folders, point_name
from fovea_detr.runs.settings import default_axes, settings
from fovea_detr.runs.stored import CHANGED, Stored, config_text, settings_of

BEFORE = Path(__file__).parent / "before"  # eight runs of the version before `kernel`, less their checkpoints
FOLDERS = sorted(path.name for path in BEFORE.iterdir())


def typed(folder: Path) -> list[str]:
    """The overrides that a folder's run was started with."""
    return json.loads((folder / "provenance.json").read_text())["command"][1:]


def edited(text: str, change: Callable[[dict[str, Any]], object]) -> str:
    """A stored configuration, changed; its first line stays."""
    first, newline, _ = text.partition("\n")
    content = yaml.safe_load(text)
    change(content)
    return (first + newline if first.startswith("#") else "") + yaml.safe_dump(content, sort_keys=False)


# ---- folders of an older version -------------------------------------------------------------------------------------


def test_there_are_eight_older_folders() -> None:
    assert len(FOLDERS) == 8


@pytest.mark.parametrize("name", FOLDERS)
def test_a_stored_configuration_that_names_the_former_evaluator_is_read(name: str) -> None:
    text = (BEFORE / name / "config.yaml").read_text()
    assert "backend: faster_coco_eval" in text
    assert Stored(text).config().evaluation.backend == "hotcoco"
    kept = edited(text, lambda content: content["evaluation"].update(backend="pycocotools"))
    assert Stored(kept).config().evaluation.backend == "pycocotools"


@pytest.mark.parametrize("name", FOLDERS)
def test_an_older_folder_is_found_by_its_own_command(name: str) -> None:
    config = load_config(typed(BEFORE / name))
    text = (BEFORE / name / "config.yaml").read_text()
    assert differences(text, config) == []
    assert Stored(text).passed_over == []
    assert Folders(BEFORE).name(point_name(typed(BEFORE / name)), config) == name


@pytest.mark.parametrize(
    ("by_group", "by_leaf"), [("smooth=8", "fovea.smooth=8"), ("smooth=8", "fovea.smooth=8.0")], ids=["int", "float"]
)
def test_either_spelling_finds_the_folder_of_the_other(by_group: str, by_leaf: str) -> None:
    base = [word for word in typed(BEFORE / FOLDERS[0]) if not word.startswith(("data.in_memory", "smooth"))]
    for spelling, other in ((by_group, by_leaf), (by_leaf, by_group)):
        for seed in (0, 1):
            overrides = [*base, spelling, f"seed={seed}"]
            found = Folders(BEFORE).name(point_name(overrides), load_config(overrides))
            assert (found in FOLDERS, "smooth=8" in found, "seed=1" in found) == (True, True, seed == 1), other


def test_older_folders_stand_in_the_table_with_the_default_of_a_newer_column(tmp_path: Path) -> None:
    """One more run, of today and with a value that did not exist: the axis has a column, the older rows its default."""
    shutil.copytree(BEFORE, tmp_path / "before")
    new = RunFolder(tmp_path / "before" / "kernel=laplace")
    new.write_config(config_text(load_config([*typed(BEFORE / FOLDERS[-2]), "dynamic_scale=type2", "kernel=laplace"])))
    new.write_state("done")
    new.write_result(json.loads((BEFORE / FOLDERS[-2] / "result.json").read_text()))
    table = make_table(find_runs(tmp_path))
    assert {row.state for row in table.rows} == {"done"}
    kernels = [row.cells["kernel"] for row in table.rows]
    plain = ["None"]  # plain DETR reads no kernel
    assert sorted(map(str, kernels)) == plain + ["gaussian"] * (len(table.rows) - 2) + ["laplace"]
    (pair,) = [row for row in table.rows if row.settings.get("fovea.smooth") == "8"]  # typed in two ways
    assert len(pair.counted) == 2


# ---- schemas that change ---------------------------------------------------------------------------------------------


@pytest.fixture
def text() -> str:
    return config_text(load_config(["experiment=tiny", "mixture=head"]))


def test_what_is_stored_is_read_again(text: str) -> None:
    config = load_config(["experiment=tiny", "mixture=head"])
    assert Stored(text).config() == config
    assert settings_of(text) == settings(config)
    assert differences(text, config) == []


def test_the_first_line_names_the_keys_that_were_set(text: str) -> None:
    first = text.partition("\n")[0].removeprefix(CHANGED).split(", ")
    assert {"mixture", "model", "model.hidden", "fovea.smooth"} <= set(first)
    assert not {"dynamic_scale", "seed", "model.pre_norm"} & set(first)
    assert config_text(Config()).startswith("# not at its default")


@pytest.mark.parametrize("older", [lambda c: c["model"].pop("pre_norm"), lambda c: c.pop("evaluation")])
def test_a_key_that_was_not_there_yet_has_its_default(text: str, older: Callable[[dict[str, Any]], object]) -> None:
    old = edited(text, older)
    config = load_config(["experiment=tiny", "mixture=head"])
    assert "evaluation.every" in settings_of(old)
    assert [line for line in differences(old, config) if "batch_size" not in line] == []


def test_a_key_that_was_not_there_yet_differs_where_it_is_set_now(text: str) -> None:
    old = edited(text, lambda content: content["model"].pop("pre_norm"))
    now = load_config(["experiment=tiny", "mixture=head", "model.pre_norm=true"])
    assert differences(old, now) == ["model.pre_norm: false -> true"]


def test_an_axis_that_was_not_there_yet_has_its_default(text: str) -> None:
    old = edited(text, lambda content: content.pop("mixture"))
    assert settings_of(old)["mixture"] == "none"
    assert Stored(old).config().mixture == load_config(["experiment=tiny"]).mixture
    assert differences(old, load_config(["experiment=tiny"])) == []


def test_a_renamed_class_is_the_same_run(text: str) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["mixture"]["_target_"] = "fovea_detr.fovea.mixture.BeforeItWasRenamed"

    old = edited(text, rename)
    config = load_config(["experiment=tiny", "mixture=head"])
    assert differences(old, config) == []
    assert Stored(old).config().mixture == config.mixture


@pytest.mark.parametrize("key", ["flag", "model.flag", "mixture.flag", "flag.deep", "model.loss_weights.flag"])
def test_a_key_that_is_gone_is_left_out_and_named_where_it_was_set(text: str, key: str) -> None:
    def add(content: dict[str, Any]) -> None:
        *parents, last = key.split(".")
        for parent in parents:
            content = content.setdefault(parent, {})
        content[last] = 3

    config = load_config(["experiment=tiny", "mixture=head"])
    for first, words in ((text, []), (text.replace(CHANGED, f"{CHANGED}{key}, "), [f"{key}=3"])):
        old = edited(first, add)
        assert Stored(old).passed_over == words
        assert differences(old, config) == []
        assert Stored(old).config() == config
        assert (key in settings_of(old)) == bool(words)  # in the table it is another row then


def test_an_infrastructure_key_that_is_gone_is_left_out(text: str) -> None:
    old = edited(text, lambda content: content["cluster"].update(colour="red"))
    assert Stored(old).passed_over == []
    assert Stored(old).config() == load_config(["experiment=tiny", "mixture=head"])


def test_of_an_older_file_every_key_that_is_gone_is_named() -> None:
    old = edited((BEFORE / FOLDERS[0] / "config.yaml").read_text(), lambda content: content["model"].update(flag=False))
    assert Stored(old).passed_over == ["model.flag=false"]
    assert differences(old, load_config(typed(BEFORE / FOLDERS[0]))) == []


def test_a_private_value_of_an_axis_is_compared_by_its_arguments(text: str) -> None:
    def private(content: dict[str, Any]) -> None:
        content["mixture"] = {"name": "mine", "_target_": "my.Mixture", "share": 0.25}

    old = edited(text, private)
    assert settings_of(old)["mixture.share"] == "0.25"
    assert Stored(old).passed_over == []
    assert Stored(old).config().mixture["_target_"] == "my.Mixture"


def test_the_defaults_of_the_schema_are_those_of_the_command_line() -> None:
    """Else a key that an old file lacks would get a value that no run of today has.

    The total batch of an old file is that of its recipe: tests/training/test_total_batch.py.
    """
    composed, plain = settings(load_config([])), settings(Config())
    assert {key: value for key, value in composed.items() if plain[key] != value} == {"schedule.total_batch": "16"}


def test_axes_have_a_folder_and_a_default() -> None:
    for axis, name in default_axes().items():
        assert (CONF_DIR / axis / f"{name}.yaml").is_file()


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_new_configuration_gets_a_new_folder(tmp_path: Path) -> None:
    overrides = ["experiment=tiny", "seed=7"]
    assert Folders(tmp_path).name(point_name(overrides), load_config(overrides)) == "experiment=tiny,seed=7"


def test_a_folder_is_found_by_what_it_holds(tmp_path: Path) -> None:
    """`type2` is the default: the base run is the same one."""
    RunFolder(tmp_path / "base").write_config(config_text(load_config(["experiment=tiny"])))
    config = load_config(["experiment=tiny", "dynamic_scale=type2"])
    assert Folders(tmp_path).name("dynamic_scale=type2", config) == "base"
    assert Folders(tmp_path).name("seed=1", load_config(["experiment=tiny", "seed=1"])) == "seed=1"


def test_of_two_folders_that_hold_it_the_named_one_counts(tmp_path: Path) -> None:
    config = load_config(["experiment=tiny"])
    for name in ("a", "b", "c"):
        RunFolder(tmp_path / name).write_config(config_text(config))
    assert [Folders(tmp_path).name(name, config) for name in ("b", "c", "d")] == ["b", "c", "a"]


def test_a_submitted_point_without_a_folder_is_found(tmp_path: Path) -> None:
    config = load_config(["experiment=tiny", "smooth=8"])
    assert Folders(tmp_path, [("smooth=8", config_text(config))]).name("fovea.smooth=8", config) == "smooth=8"


def test_a_damaged_folder_is_no_obstacle(tmp_path: Path) -> None:
    for name, text in {"a": "[", "b": "", "c": "7", "d": "model: 7\n"}.items():
        RunFolder(tmp_path / name).write_config(text)
    assert Folders(tmp_path).name("new", load_config(["experiment=tiny"])) == "new"


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    folder.write_config(config_text(load_config(["experiment=tiny", "dynamic_scale=type1"])))
    with pytest.raises(RunFolderError, match=r"dynamic_scale: type1 -> type3; seed: 0 -> 4\)"):
        refuse_other_config(load_config(["experiment=tiny", "dynamic_scale=type3", "seed=4"]), folder)


def test_other_data_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    refuse_other_data(folder, {"val": "1111"}, "/b")  # nothing is known of it
    folder.write_provenance({"data": {"val": "1111", "train": "2222"}})
    refuse_other_data(folder, {"val": "1111", "train": "2222"}, "/moved")
    with pytest.raises(RunFolderError, match=r"train annotations had the fingerprint 2222, those of /b have 3333"):
        refuse_other_data(folder, {"val": "1111", "train": "3333"}, "/b")


def test_a_stored_configuration_that_is_no_longer_valid_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="heads"):
        Stored(edited(text, lambda content: content["model"].update(heads=7))).config()


def test_a_run_with_a_set_key_that_is_gone_is_found_by_its_own_name_only(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is another model: the plain command must not show its result."""
    config = load_config(["experiment=tiny", "mixture=head"])
    first = text.replace(CHANGED, f"{CHANGED}model.flag, ")
    learned = edited(first, lambda content: content["model"].update(flag="learned"))
    RunFolder(tmp_path / "model.flag=learned").write_config(learned)
    folders = Folders(tmp_path)
    assert folders.name("mixture=head", config) == "mixture=head"
    assert folders.name("model.flag=learned", config) == "model.flag=learned"
    note_left_out(tmp_path / "model.flag=learned", learned)
    assert capsys.readouterr().err.endswith("this version does not have them: model.flag=learned\n")
