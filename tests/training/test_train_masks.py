"""Training with masks: steps, a frozen detector, resume, several ranks, the preflight, and what weights fit."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from fovea_detr import assembly, experiment
from fovea_detr.compose import load_config
from fovea_detr.data.categories import Classes
from fovea_detr.errors import ConfigError, WeightsError
from fovea_detr.model.published import in_our_names, in_published_names
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.stored import config_text
from fovea_detr.study.ready import make_ready
from fovea_detr.training.checkpoint import load_weights
from fovea_detr.training.console import Console
from fovea_detr.training.frozen import DETECTOR, train_mode
from fovea_detr.training.initial import Weights
from fovea_detr.training.trained import as_trained
from fovea_detr.types import Batch, Target
from tests.model.builders import random_batch, small_config, small_model
from tests.predictions import random_targets
from tests.training.test_train_step import SmallTrainer, reads_of_two_steps

MASKS = "model.masks=true"
FROZEN = "model.freeze_detector=true"
NEW = ("bbox_attention.", "mask_head.")


def with_masks(batch: Batch, targets: list[Target]) -> list[Target]:
    draw = torch.Generator().manual_seed(5)
    sizes = batch.sizes_hw.tolist()
    return [
        replace(target, masks=torch.rand(len(target), *size, generator=draw) < 0.5)
        for target, size in zip(targets, sizes, strict=True)
    ]


class MaskTrainer(SmallTrainer):
    def __init__(self, folder: Path, *overrides: str, counts: tuple[int, int] = (3, 2)) -> None:
        super().__init__(folder, MASKS, *overrides)
        self.targets = with_masks(self.batch, random_targets(*counts))
        train_mode(self.wrapped, self.state.model, self.config)


def changed(trainer: SmallTrainer, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in trainer.weights().items() if not torch.equal(value, before[name])}


# ---- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [(), (FROZEN,), ("precision=bf16", "model.mask_prior=last")], ids=str)
def test_a_step_with_masks_reads_from_the_device_once(
    tmp_path: Path, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = MaskTrainer(tmp_path, *overrides)
    assert reads_of_two_steps(trainer, monkeypatch) == (2, [], [])
    trainer.reports.settle()
    assert {"loss_mask", "loss_dice", "loss_giou"} < set(trainer.reports.latest)


def test_training_lowers_the_losses_of_the_masks(tmp_path: Path) -> None:
    trainer = MaskTrainer(tmp_path, FROZEN, "schedule.lr=1e-3", "schedule.usual_lr=1e-3", "model.dropout=0")
    for target in trainer.targets:
        assert target.masks is not None
        target.masks[:] = torch.arange(target.masks.shape[2]) < 30
    seen = []
    for _ in range(60):
        trainer.step()
        trainer.reports.read()
        seen.append(trainer.reports.latest)
    assert seen[-1]["loss_mask"] < 0.7 * seen[0]["loss_mask"]
    assert seen[-1]["loss_dice"] < 0.9 * seen[0]["loss_dice"]
    assert seen[-1]["loss_giou"] == pytest.approx(seen[0]["loss_giou"], rel=1e-6)


def test_a_frozen_detector_keeps_weights_and_statistics(tmp_path: Path) -> None:
    """Its dropout draws other numbers at every step, as published."""
    trainer = MaskTrainer(tmp_path, FROZEN, "model.batch_norm=trainable")
    before, losses = trainer.weights(), []
    for _ in range(3):
        trainer.step()
        trainer.reports.read()
        losses.append(trainer.reports.latest["loss_giou"])
    assert changed(trainer, before) == {name for name in before if name.startswith(NEW)}
    assert len(set(losses)) == 3
    assert {id(p) for group in trainer.state.optimizer.param_groups for p in group["params"]} == {
        id(p) for name, p in trainer.state.model.named_parameters() if name.startswith(NEW)
    }


def test_the_detector_is_everything_but_the_head() -> None:
    names = dict(small_model(MASKS).named_children())
    assert set(names) == {*DETECTOR, "bbox_attention", "mask_head"}


@pytest.mark.parametrize("overrides", [(), (FROZEN,)], ids=str)
def test_a_batch_without_objects(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """The head's gradient is zero, and not missing: weight decay and moments go on, as in the published code."""
    trainer = MaskTrainer(tmp_path, *overrides, counts=(0, 0))
    trainer.step()
    trainer.reports.settle()
    assert trainer.reports.latest["loss_mask"] == trainer.reports.latest["loss_dice"] == 0
    head = trainer.state.model.get_parameter("mask_head.lay1.weight")
    assert head.grad is not None
    assert not head.grad.any()


@pytest.mark.parametrize("overrides", [(), (FROZEN,)], ids=str)
def test_resumed_is_bit_equal(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    calm, first, second = (MaskTrainer(tmp_path / name, *overrides) for name in ("calm", "first", "second"))
    for _ in range(4):
        calm.step()
    for _ in range(2):
        first.step()
    first.reports.settle()
    second.state.load_state_dict(copy.deepcopy(first.state.state_dict()))
    second.steps = 2
    for _ in range(2):
        second.step()
    assert changed(second, calm.weights()) == set()


# ---- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), (FROZEN,)], ids=str)
@pytest.mark.parametrize("counts", [(3, 2), (0, 2), (0, 0)], ids=str)
def test_two_ranks_take_the_step_of_one(tmp_path: Path, overrides: tuple[str, ...], counts: tuple[int, int]) -> None:
    """One rank may have no object at all; without dropout, two images on two ranks are one batch of two."""
    spawn(_steps_of_a_rank, (tmp_path, overrides, counts), nprocs=2)
    alone = one_by_one(tmp_path / "alone", overrides, counts)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    before = small_model(MASKS, *overrides, "model.dropout=0")
    assert all(torch.equal(ranks[0][name], value) for name, value in ranks[1].items())
    for name, value in alone.weights().items():
        moved = (value - before.state_dict()[name]).abs().max()
        assert (ranks[0][name] - value).abs().max() <= 1e-6 + 1e-2 * moved, name


def one_by_one(folder: Path, overrides: tuple[str, ...], counts: tuple[int, int]) -> MaskTrainer:
    """Two steps of two micro-batches of one image."""
    trainer = MaskTrainer(folder, *overrides, "model.dropout=0", counts=counts)
    for step in range(2):
        first, second = (micro_batch(trainer, image) for image in range(2))
        trainer.train_step(*first, step, second)
        trainer.end_step(step)
    return trainer


def micro_batch(trainer: MaskTrainer, image: int) -> tuple[Batch, list[Target]]:
    size = trainer.batch.sizes_hw[image].tolist()
    return random_batch((size[0], size[1])), trainer.targets[image : image + 1]


def _steps_of_a_rank(rank: int, folder: Path, overrides: tuple[str, ...], counts: tuple[int, int]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    trainer = MaskTrainer(folder / f"run{rank}", *overrides, "model.dropout=0", counts=counts)
    trainer.wrapped = assembly.wrap_for_ranks(trainer.config, trainer.state.model, trainer.device)
    train_mode(trainer.wrapped, trainer.state.model, trainer.config)
    for step in range(2):
        trainer.train_step(*micro_batch(trainer, rank), step)
        trainer.end_step(step)
    torch.save(trainer.weights(), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


# ---- weights ---------------------------------------------------------------------------------------------------------


def saved(path: Path, *overrides: str) -> Path:
    """A checkpoint of ours with its configuration."""
    torch.save({"model": small_model(*overrides).state_dict(), "config": config_text(small_config(*overrides))}, path)
    return path


def published(path: Path, *overrides: str) -> Path:
    torch.save({"model": in_published_names(small_model(*overrides).state_dict())}, path)
    return path


def test_published_names_and_back() -> None:
    state = small_model(MASKS).state_dict()
    theirs = in_published_names(state)
    assert {"detr.transformer.decoder.layers.0.point1.layers.0.weight", "mask_head.lay1.weight"} < set(theirs)
    assert {name.partition(".")[0] for name in theirs} == {"detr", "bbox_attention", "mask_head"}
    assert list(in_our_names(theirs)) == list(state)
    assert list(in_our_names({f"module.{name}": value for name, value in theirs.items()})) == list(state)
    assert not any(name.startswith("detr.") for name in in_published_names(small_model().state_dict()))


def assert_same(model: nn.Module, other: nn.Module) -> None:
    expected = other.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("make", [saved, published])
def test_a_checkpoint_with_masks_fits_with_and_without(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make(tmp_path / "a.pt", MASKS)
    model = small_model(MASKS, seed=1)
    assert load_weights(model, path).notes == []
    assert_same(model, small_model(MASKS))
    boxes = small_model(seed=1)
    report = load_weights(boxes, path)
    assert "its mask head is left out, for the model has none (model.masks=false)" in report.describe()
    assert report.missing == []
    assert_same(boxes, small_model())


@pytest.mark.parametrize("make", [saved, published])
def test_a_detector_begins_stage_2(make: Callable[..., Path], tmp_path: Path) -> None:
    path, model = make(tmp_path / "a.pt"), small_model(MASKS, FROZEN, seed=1)
    head = copy.deepcopy(model.get_submodule("mask_head").state_dict())
    report = load_weights(model, path)
    assert report.notes == []
    assert all(name.startswith(NEW) for name in report.missing)
    assert "left as initialised: bbox_attention.q_linear.weight" in report.describe()
    assert all(torch.equal(value, head[name]) for name, value in model.get_submodule("mask_head").state_dict().items())
    with pytest.raises(
        WeightsError, match=r"it has no mask head .*: train one with mode=train model.freeze_detector=true"
    ):
        load_weights(small_model(MASKS), path)
    assert load_weights(small_model(MASKS), path, other_classes=True).missing == report.missing  # joint finetuning


def test_half_a_mask_head_is_refused() -> None:
    state = small_model(MASKS).state_dict()
    half = {name: value for name, value in state.items() if not name.startswith("bbox_attention.")}
    with pytest.raises(WeightsError, match=r"the file has no bbox_attention.q_linear.weight"):
        load_weights(small_model(MASKS, FROZEN), half)


def test_another_mask_prior_does_not_load(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", MASKS, "model.mask_prior=last")
    with pytest.raises(WeightsError, match=r"model.mask_prior: last -> none"):
        load_weights(small_model(MASKS), path)
    assert load_weights(small_model(MASKS, FROZEN, "model.mask_prior=last"), path).notes == []
    load_weights(small_model(), path)  # only its detector


def test_evaluation_takes_masks_from_the_checkpoint_unless_told_otherwise(tmp_path: Path) -> None:
    merge = ["panoptic.score=sigmoid", "panoptic.threshold=0.4"]
    path = saved(tmp_path / "a.pt", MASKS, FROZEN, "model.mask_prior=last", *merge)
    evaluate = ["mode=eval", f"weights={path}"]
    found = as_trained(load_config(evaluate), evaluate, quiet=True)
    assert (found.model.masks, found.data.masks, found.panoptic.score) == (True, True, "sigmoid")
    typed = [*evaluate, "panoptic.score=sigmoid", "panoptic.threshold=0.2"]
    assert as_trained(load_config(typed), typed, quiet=True).panoptic.threshold == 0.2
    typed = [*evaluate, "model.masks=false"]
    config = as_trained(load_config(typed), typed, quiet=True)
    boxes = config.model
    assert (boxes.masks, boxes.mask_prior, boxes.freeze_detector, config.data.masks) == (False, "none", False, False)
    of_boxes = saved(tmp_path / "b.pt")
    typed = ["mode=eval", f"weights={of_boxes}", MASKS]
    with pytest.raises(WeightsError, match=r"was trained with model.masks=false"):
        as_trained(load_config(typed), typed, quiet=True)


def test_an_evaluation_may_change_one_key_of_the_merge(tmp_path: Path) -> None:
    merge = ["panoptic.score=sigmoid", "panoptic.threshold=0.4", "panoptic.crop=true"]
    path = saved(tmp_path / "a.pt", MASKS, *merge)
    typed = ["mode=eval", f"weights={path}", "panoptic.threshold=0.2"]
    assert vars(as_trained(load_config(typed), typed, quiet=True).panoptic) == {
        "score": "sigmoid",
        "threshold": 0.2,
        "crop": True,
    }


def test_a_larger_batch_than_that_of_the_checkpoint_does_not_stretch_its_masks_silently(tmp_path: Path) -> None:
    panoptic = ["data=shapes_panoptic", "model.loss=softmax", "evaluation.batch_size=1"]
    path = saved(tmp_path / "a.pt", MASKS, *panoptic)
    for batch, refused in ((1, False), (8, True)):
        typed = ["mode=eval", f"weights={path}", f"evaluation.batch_size={batch}"]
        with pytest.raises(ConfigError, match="stretches the masks") if refused else nullcontext():
            assert as_trained(load_config(typed), typed, quiet=True).evaluation.batch_size == batch
    typed = [*typed, "panoptic.crop=true"]
    assert as_trained(load_config(typed), typed, quiet=True).panoptic.crop


def test_the_arguments_of_a_published_checkpoint_name_masks(tmp_path: Path) -> None:
    state = in_published_names(small_model(MASKS, "model.fovea=false", "model.loss=softmax").state_dict())
    known = {"backbone": "tiny", "hidden_dim": 16, "nheads": 2, "enc_layers": 1, "dec_layers": 2, "eos_coef": 0.1}
    arguments = argparse.Namespace(**known, dim_feedforward=16, num_queries=7, masks=True, frozen_weights="boxes.pth")
    torch.save({"model": state, "args": arguments}, tmp_path / "a.pth")
    typed = ["mode=eval", f"weights={tmp_path / 'a.pth'}"]
    assert as_trained(load_config(typed), typed, quiet=True).model.masks


# ---- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([FROZEN], "model.freeze_detector=true needs a mask head: add model.masks=true"),
        (["model.mask_prior=last"], "model.mask_prior=last needs a mask head"),
        (["model.loss_weights.dice=2"], "model.loss_weights.dice=2.0 needs a mask head"),
        ([MASKS, "model.mask_prior=last", "model=detr_r50"], "model.mask_prior=last adds the fovea's prior"),
        ([MASKS, "model.mask_prior=first"], "model.mask_prior=first is not one of none, last"),
        ([MASKS, "model.loss_weights.mask=-1"], "model.loss_weights.mask=-1.0 must not be negative"),
        ([MASKS, "model.hidden=24", "model.heads=2"], "model.hidden=24 is no multiple of 16"),
        ([MASKS, FROZEN, "compile=true"], "leave compile out"),
        ([MASKS, FROZEN, "train.freeze=backbone"], "freezes these parts already"),
    ],
)
def test_refused_in_one_line(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_schedule_of_stage_2() -> None:
    schedule = load_config(["schedule=masks"]).schedule
    assert (schedule.epochs, schedule.lr_drop, schedule.lr, schedule.weight_decay) == (25, 15, 1e-4, 1e-4)
    assert (schedule.clip, schedule.total_batch, schedule.kind, schedule.name) == (0.1, 16, "step", "masks")


def test_a_frozen_detector_needs_weights(tmp_path: Path) -> None:
    config = load_config([MASKS, FROZEN])
    for start in (lambda: experiment.run(config, "point"), lambda: make_ready([config])):
        with pytest.raises(ConfigError, match=r"model.freeze_detector=true trains .*: add weights=PATH"):
            start()
    experiment.check_start(load_config([MASKS, FROZEN, f"weights={saved(tmp_path / 'a.pt')}"]))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({1: "cat", 2: "dog"}, None),
        ({1: "cat", 2: "dog", 3: "cow"}, None),
        ({1: "dog", 2: "cat"}, "its outputs are not the classes of the data: finetune"),
        ({1: "cat"}, "(dog of the data not in it)"),
    ],
    ids=str,
)
def test_a_frozen_class_head_must_have_the_classes_of_the_data(
    tmp_path: Path, names: dict[int, str], words: str | None
) -> None:
    """It is not trained: an output of another class would stay wrong."""
    path = saved(tmp_path / "a.pt")
    torch.save({**torch.load(path), "categories": names}, path)
    overrides = [MASKS, FROZEN, f"weights={path}"]
    weights = Weights.read(small_config(*overrides), Classes({1: "cat", 2: "dog"}, 5))
    model, console = small_model(*overrides, seed=1), Console(RunFolder(tmp_path), "a", 1, enabled=False)
    if words is None:
        weights.load(model, console)
        assert torch.equal(model.class_head.weight, small_model().class_head.weight)
    else:
        with pytest.raises(WeightsError) as caught:
            weights.load(model, console)
        assert words in str(caught.value)
