"""The plain implementation equals ours in outputs, losses, gradients and a step; dropout is 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.plain import model as plain_model
from benchmarks.plain.criterion import plain_criterion
from benchmarks.plain.layers import pad
from benchmarks.plain.model import PlainDETR, plain_twin
from benchmarks.plain.step import in_float32, new_log, plain_optimizer, plain_step
from fovea_detr.build import build_criterion, build_model
from fovea_detr.compose import load_config
from fovea_detr.data.loader import collate_images
from fovea_detr.errors import ConfigError
from fovea_detr.model.detr import DETR
from fovea_detr.training.optim import build_optimizer, set_learning_rate
from fovea_detr.types import Target
from tests.fovea.priors import randomise
from tests.model.builders import random_image, small_config

SIZES_HW = ((64, 96), (80, 64))
TYPES, MIXTURES = ("type1", "type2", "type3", "type4"), ("none", "head", "query", "head_query")


def pair(*overrides: str) -> tuple[DETR, PlainDETR]:
    """Our model with random parameters, and its plain twin."""
    config = small_config("model.dropout=0", *overrides)
    torch.manual_seed(0)
    ours = build_model(config)
    randomise(ours.decoder, seed=1)
    return ours, plain_twin(config, ours)


@pytest.mark.parametrize(
    "override",
    [
        "kernel=laplace",
        "fovea.cell_centre=true",
        "dynamic_scale=type5",
        "model.backbone=convnext_tiny",
        "model.position=learned",
        "model.pre_norm=true",
    ],
)
def test_a_value_without_a_plain_formula_is_refused_in_one_line(override: str) -> None:
    with pytest.raises(ConfigError, match=f"^{override} has no plain twin .*: choose .*$") as error:
        pair(override)
    assert "\n" not in str(error.value)


def test_plain_detr_ignores_the_axes_of_the_fovea() -> None:
    pair("model.fovea=false", "dynamic_scale=type5", "fovea.cell_centre=true")


def images() -> list[Tensor]:
    return [random_image(*size, seed=i) for i, size in enumerate(SIZES_HW)]


def targets() -> list[Target]:
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.2, 0.5], [0.7, 0.2, 0.1, 0.2]])
    return [Target(torch.tensor([1, 4, 1]), boxes), Target(torch.tensor([2]), boxes[:1])]


def as_dicts(objects: list[Target]) -> list[dict[str, Tensor]]:
    return [{"labels": target.labels, "boxes": target.boxes_cxcywh} for target in objects]


def stacked(outputs: dict, key: str) -> Tensor:
    return torch.stack([*(layer[key] for layer in outputs["aux_outputs"]), outputs[key]])


def near(ours: Tensor, plain: Tensor) -> None:
    torch.testing.assert_close(ours, plain, rtol=2e-4, atol=2e-5 * max(1.0, plain.detach().abs().max().item()))


def same_gradients(ours: nn.Module, plain: nn.Module) -> None:
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        mine, other = parameter.grad, theirs[name].grad
        assert (mine is None) == (other is None), name
        if mine is not None and other is not None:
            near(mine, other)


KINDS = [(f"dynamic_scale={kind}", f"mixture={mixture}") for kind in TYPES for mixture in MIXTURES]


@pytest.mark.parametrize("overrides", [*KINDS, ("model.fovea=false",)], ids=" ".join)
@pytest.mark.parametrize("loss", ["focal", "softmax"])
def test_model_losses_and_gradients(overrides: tuple[str, ...], loss: str) -> None:
    config = small_config("model.dropout=0", f"model.loss={loss}", *overrides)
    ours, plain = pair(f"model.loss={loss}", *overrides)
    predictions = ours(collate_images(images()))
    outputs = plain(*pad(images()))
    near(predictions.logits, stacked(outputs, "pred_logits"))
    near(predictions.boxes_cxcywh, stacked(outputs, "pred_boxes"))
    losses = build_criterion(config)(predictions, targets())
    criterion = plain_criterion(config, predictions.logits.shape[-1])
    theirs = criterion(outputs, as_dicts(targets()))
    for published, name in (("loss_ce", "classification"), ("loss_bbox", "l1"), ("loss_giou", "giou")):
        last = len(predictions.logits) - 1
        near(
            losses.by_layer[name], torch.stack([*(theirs[f"{published}_{i}"] for i in range(last)), theirs[published]])
        )
    total = sum((theirs[name] * weight for name, weight in criterion.weights.items()), torch.zeros(()))
    near(losses.total, total)
    losses.total.backward()
    total.backward()
    same_gradients(ours, plain)


def test_a_frozen_resnet_and_its_dilated_stage() -> None:
    ours, plain = pair("model.backbone=resnet18")
    randomise_statistics(ours)
    plain.load_state_dict(ours.state_dict())
    with torch.no_grad():
        near(ours(collate_images(images())).logits, stacked(plain(*pad(images())), "pred_logits"))
    assert [p.requires_grad for p in ours.parameters()] == [
        dict(plain.named_parameters())[name].requires_grad for name, _ in ours.named_parameters()
    ]


def randomise_statistics(model: nn.Module) -> None:
    draw = torch.Generator().manual_seed(2)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(buffer.shape, generator=draw) + 0.5)


def test_images_without_objects() -> None:
    config = small_config("model.dropout=0")
    ours, plain = pair()
    nothing = [Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))] * 2
    predictions, outputs = ours(collate_images(images())), plain(*pad(images()))
    losses = build_criterion(config)(predictions, nothing)
    theirs = plain_criterion(config, predictions.logits.shape[-1])(outputs, as_dicts(nothing))
    near(losses.by_layer["classification"][-1], theirs["loss_ce"])
    assert theirs["loss_bbox"].item() == 0


def test_steps_have_the_same_losses() -> None:
    config = small_config("model.dropout=0")
    ours, plain = pair()
    criterion, optimizer = build_criterion(config), build_optimizer(ours, config.schedule)
    set_learning_rate(optimizer, 1.0)
    published, plain_adamw, log = plain_criterion(config, 6), plain_optimizer(plain, config.schedule), new_log()
    for _ in range(5):
        losses = criterion(ours(collate_images(images())), targets())
        optimizer.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(ours.parameters(), config.schedule.clip)
        optimizer.step()
        value = plain_step(plain, published, plain_adamw, pad(images()), as_dicts(targets()), log)
        assert value == pytest.approx(losses.total.item(), rel=1e-4)
    layers = config.model.decoder_layers
    assert len(log) == 1 + 3 * layers + 4 * layers + 1  # scaled, unscaled, and the class error


def test_the_optimizers_move_the_same_weights_alike() -> None:
    config = small_config("schedule.lr=3e-4", "schedule.lr_backbone=1e-4")
    ours, plain = pair()
    optimizer, plain_adamw = build_optimizer(ours, config.schedule), plain_optimizer(plain, config.schedule)
    theirs = dict(plain.named_parameters())
    for factor in (1.0, 1.0, 0.1):
        for i, (name, parameter) in enumerate(ours.named_parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            theirs[name].grad = parameter.grad.clone()
        for each in (optimizer, plain_adamw):
            set_learning_rate(each, factor)
            each.step()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-5, atol=1e-7)


def test_the_step_runs_under_bfloat16_with_its_losses_in_float32() -> None:
    config = small_config("model.dropout=0")
    _, plain = pair()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = in_float32(plain(*pad(images())))
    assert {part.dtype for part in (outputs["pred_boxes"], outputs["aux_outputs"][0]["pred_logits"])} == {torch.float32}
    optimizer = plain_optimizer(plain, config.schedule)
    step = (plain, plain_criterion(config, 6), optimizer, pad(images()), as_dicts(targets()), new_log())
    assert np.isfinite(plain_step(*step, bf16=True))


def test_a_key_that_the_plain_model_does_not_know_is_refused_unless_at_its_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after a new axis: its other values would be compared with a formula that lacks them."""
    monkeypatch.delitem(plain_model.FOVEA_VALUES, "fovea.cell_centre")
    plain_model.check_published(load_config(["model=fovea_tiny"]))
    with pytest.raises(ConfigError, match=r"fovea\.cell_centre=true has no plain twin"):
        plain_model.check_published(load_config(["model=fovea_tiny", "fovea.cell_centre=true"]))
