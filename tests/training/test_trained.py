"""What a checkpoint was trained with, against what it is loaded into."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fovea_detr.build import build_model
from fovea_detr.compose import load_config
from fovea_detr.config.schema import Checkpoint, Config
from fovea_detr.data.categories import ClassMap
from fovea_detr.errors import RunFolderError, WeightsError
from fovea_detr.model.published import published_name
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.stored import config_text
from fovea_detr.training.checkpoint import load_weights, read
from fovea_detr.training.saver import About, Saver
from fovea_detr.training.state import TrainState
from fovea_detr.training.trained import as_trained, class_names, trained_config
from tests.model.builders import small_config, small_model

PUBLISHED = {  # as the published training script stores them
    "dynamic_scale": "type3",
    "smooth": 4,
    "head_mixture": True,
    "query_mixture": False,
    "hidden_dim": 16,
    "nheads": 2,
    "enc_layers": 1,
    "dec_layers": 2,
    "dim_feedforward": 16,
    "num_queries": 7,
    "dropout": 0.1,
    "pre_norm": False,
    "position_embedding": "sine",
    "dilation": False,
    "lr_drop": 40,
}


def saved(path: Path, *overrides: str) -> Path:
    """A checkpoint of ours with its configuration."""
    content = {"model": small_model(*overrides).state_dict(), "config": config_text(small_config(*overrides))}
    torch.save({**content, "categories": {1: "cat", 2: "dog"}}, path)
    return path


def published(path: Path, *overrides: str, **changes: Any) -> Path:
    state = {published_name(name): value for name, value in small_model(*overrides).state_dict().items()}
    torch.save({"model": state, "args": argparse.Namespace(**{**PUBLISHED, **changes})}, path)
    return path


def evaluation(weights: Path, *overrides: str) -> tuple[Config, list[str]]:
    typed = ["mode=eval", f"weights={weights}", *overrides]
    return load_config(typed), typed


# ---- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trained", "now", "words"),
    [
        (["fovea.smooth=4"], ["fovea.smooth=16"], "fovea.smooth: 4 -> 16"),
        (["dynamic_scale=type4"], ["dynamic_scale=type5"], "dynamic_scale: type4 -> type5"),
        (["mixture=head"], ["mixture=query"], "mixture: head -> query"),
        (["kernel=laplace"], ["kernel=gaussian"], "kernel: laplace -> gaussian"),
        (["fovea.cell_centre=true"], [], "fovea.cell_centre: true -> false"),
        (["model.fovea=false", "model.heads=4"], ["model.fovea=false"], "model.heads: 4 -> 2"),
    ],
)
def test_equal_shapes_with_other_settings_do_not_load(
    tmp_path: Path, trained: list[str], now: list[str], words: str
) -> None:
    path, model = saved(tmp_path / "a.pt", *trained), small_model(*now, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=words):
        load_weights(model, path)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert words in load_weights(model, path, other_classes=True).describe()  # finetuning


def test_settings_of_the_training_alone_do_not_count(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", "model.dropout=0.3", "model.loss_weights.l1=7")
    assert load_weights(small_model(seed=1), path).notes == []


def test_plain_models_ignore_the_prior(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", "model.fovea=false", "fovea.smooth=4", "dynamic_scale=type1")
    load_weights(small_model("model.fovea=false", seed=1), path)


def test_a_published_checkpoints_arguments_count(tmp_path: Path) -> None:
    theirs = ["dynamic_scale=type3", "fovea.smooth=4", "mixture=head"]
    path = published(tmp_path / "a.pth", *theirs, backbone="tiny")
    load_weights(small_model(*theirs, seed=1), path)
    with pytest.raises(WeightsError, match=r"fovea.smooth: 4 -> 8; mixture: head -> none"):
        load_weights(small_model("dynamic_scale=type3"), path)


def test_arguments_of_other_scripts_do_not_count(tmp_path: Path) -> None:
    path = published(tmp_path / "a.pth")
    content = {**read(path), "args": argparse.Namespace(lr=1e-4, model="resnet50")}
    assert trained_config(content, "a.pth", small_config()) is None
    assert load_weights(small_model(seed=1), content).notes == []


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_alone_is_evaluated_as_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = ["dynamic_scale=type3", "fovea.smooth=4", "kernel=laplace", "data.recipe=tiny"]
    path = saved(tmp_path / "a.pt", *ours)
    config = as_trained(*evaluation(path, "data.root=/here"))
    trained = small_config(*ours)
    assert config.model == replace(trained.model, backbone_weights="imagenet")
    assert (config.fovea, config.dynamic_scale, config.kernel) == (trained.fovea, trained.dynamic_scale, trained.kernel)
    assert (config.data.recipe, config.data.root, config.data.num_classes) == ("tiny", "/here", 5)
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert "fovea.smooth=4, " in line
    load_weights(build_model(config), path)


@pytest.mark.parametrize("typed", ["smooth=16", "fovea.smooth=16", "data.num_classes=9", "model=fovea_r50"])
def test_an_override_that_differs_is_refused(tmp_path: Path, typed: str) -> None:
    path = saved(tmp_path / "a.pt", "fovea.smooth=4")
    with pytest.raises(WeightsError, match=r"was trained with .*leave (it|them) out") as caught:
        as_trained(*evaluation(path, typed))
    assert "\n" not in str(caught.value)


def test_an_override_that_agrees_is_accepted(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", "fovea.smooth=4")
    assert as_trained(*evaluation(path, "smooth=4", "data.num_classes=5", "model.num_queries=7")).fovea.smooth == 4


@pytest.mark.parametrize("typed", [[], ["data.root=/elsewhere"], ["data=coco", "data.root=/elsewhere"]])
def test_the_evaluation_size_is_the_trained_one_whatever_data_is_named(tmp_path: Path, typed: list[str]) -> None:
    sized = ("data.recipe=tiny", "data.long_side=320", "data.root=/trained")
    path = saved(tmp_path / "ours.pt", *sized)
    assert as_trained(*evaluation(path, *typed)).data.long_side == 320
    with pytest.raises(WeightsError, match=r"was trained with data\.long_side=320 \(the command has 256\)"):
        as_trained(*evaluation(path, "data.root=/elsewhere", "data.recipe=tiny", "data.long_side=256"))


def test_a_typed_key_of_the_data_keeps_the_data_of_the_training(tmp_path: Path) -> None:
    path = saved(tmp_path / "ours.pt", f"data.root={tmp_path}")
    data = as_trained(*evaluation(path, "data.workers=3", "data.in_memory=true", "data.max_flawed=0.5")).data
    assert (data.root, data.workers, data.in_memory, data.max_flawed) == (str(tmp_path), 3, True, 0.5)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "model: {bogus: 1}", "lr: 0.1", ""])
def test_what_other_programs_call_config_and_categories_is_not_ours(text: str) -> None:
    content = {"config": text, "categories": ["cat"], "model": small_model().state_dict()}
    assert trained_config(content, "x.pt", small_config()) is None
    assert class_names(content) is None
    assert class_names({"categories": {"1": "cat"}}) is None
    assert class_names({"categories": {1: "cat"}}) == {1: "cat"}


def test_the_data_of_the_training_where_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    here, gone = f"data.root={tmp_path / 'data'}", "data.root=/gone/away"
    assert as_trained(*evaluation(saved(tmp_path / "a.pt", here))).data.root == str(tmp_path / "data")
    assert as_trained(*evaluation(saved(tmp_path / "a.pt", gone))).data.root is None
    config = as_trained(*evaluation(saved(tmp_path / "a.pt", "data=shapes"), "experiment=tiny"))
    assert (config.data.name, config.data.train_images) == ("shapes", 1024)


def test_a_published_checkpoint_is_evaluated_as_trained(tmp_path: Path) -> None:
    theirs = ["dynamic_scale=type3", "fovea.smooth=4", "mixture=head"]
    path = published(tmp_path / "a.pth", *theirs, backbone="tiny")
    config = as_trained(*evaluation(path))
    assert (config.dynamic_scale["name"], config.fovea.smooth, config.mixture["name"]) == ("type3", 4.0, "head")
    assert (config.model.hidden, config.model.num_queries, config.data.num_classes) == (16, 7, 5)
    with pytest.raises(WeightsError, match=r"mixture=head \(the command has query\)"):
        as_trained(*evaluation(path, "mixture=query"))


def test_a_published_plain_detr_is_plain(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    arguments = {name: value for name, value in PUBLISHED.items() if not name.endswith(("mixture", "scale", "smooth"))}
    state = {published_name(k): v for k, v in small_model("model.fovea=false").state_dict().items()}
    torch.save({"model": state, "args": argparse.Namespace(**arguments, backbone="tiny", eos_coef=0.1)}, path)
    config = as_trained(*evaluation(path))
    assert (config.model.fovea, config.model.loss, config.model.hidden) == (False, "softmax", 16)


def test_a_checkpoint_without_a_configuration_is_evaluated_as_typed(tmp_path: Path) -> None:
    torch.save({"model": small_model().state_dict()}, tmp_path / "a.pt")
    config, typed = evaluation(tmp_path / "a.pt", "model=fovea_tiny")
    assert as_trained(config, typed) == replace(config, data=replace(config.data, num_classes=5))


# ---- classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["focal", "softmax"])
def test_finetuning_keeps_the_rows_of_the_classes_in_common(loss: str) -> None:
    source, model = (small_model(f"data.num_classes={n}", f"model.loss={loss}", seed=n) for n in (5, 4))
    before = model.class_head.weight.clone()
    report = load_weights(model, source.state_dict(), other_classes=True, classes=ClassMap(True, {1: 3, 4: 1}, ["cow"]))
    theirs, now = source.class_head.weight, model.class_head.weight
    assert torch.equal(now[[3, 1, 4]], theirs[[1, 4, 5]])
    assert torch.equal(now[[0, 2]], before[[0, 2]])
    assert report.describe().endswith("classes: 2 mapped by name; no counterpart in the data: cow")


def test_the_same_classes_load_whole() -> None:
    source, model = small_model(seed=1), small_model(seed=2)
    load_weights(model, source.state_dict(), other_classes=True, classes=ClassMap(True, {1: 1, 4: 4}))
    assert torch.equal(model.class_head.weight, source.class_head.weight)


def test_without_a_class_in_common_the_head_is_skipped() -> None:
    source, model = small_model(seed=1), small_model(seed=2)
    before = model.class_head.weight.clone()
    report = load_weights(model, source.state_dict(), other_classes=True, classes=ClassMap(True, {}, ["a"], ["b"]))
    assert set(report.skipped) == {"class_head.weight", "class_head.bias"}
    assert torch.equal(model.class_head.weight, before)


# ---- a run's own checkpoint ------------------------------------------------------------------------------------------


def saver(folder: Path, config: Config) -> Saver:
    model = build_model(config)
    made = Saver(RunFolder(folder), TrainState(model, torch.optim.AdamW(model.parameters())), Checkpoint(), gpus=0)
    made.about = About(config, {"train": "aa", "val": "bb"}, {1: "cat"}, {1: 1})
    return made


def test_a_checkpoint_of_another_configuration_is_not_resumed(tmp_path: Path) -> None:
    saver(tmp_path, small_config("fovea.smooth=4")).save()
    content = torch.load(tmp_path / "checkpoint.pt")
    assert content["categories"] == {1: "cat"}
    saver(tmp_path, small_config("fovea.smooth=4", "data.workers=7")).restore()
    with pytest.raises(RunFolderError, match=r"fovea.smooth: 4 -> 16") as caught:
        saver(tmp_path, small_config("fovea.smooth=16")).restore()
    assert "\n" not in str(caught.value)
