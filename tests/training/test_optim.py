"""The learning rate as a function of the step, by hand, and the two groups it is applied to."""

from __future__ import annotations

import math

import pytest
import torch

from fovea_detr.compose import load_config
from fovea_detr.config.schema import Schedule
from fovea_detr.errors import WeightsError
from fovea_detr.model.published import published_name
from fovea_detr.training.optim import build_optimizer, learning_rate_factor, set_learning_rate
from fovea_detr.training.state import TrainState
from tests.model.builders import small_config, small_model

STEP = Schedule(kind="step", epochs=5, lr_drop=3)
COSINE = Schedule(kind="cosine", epochs=5, lr_drop=None)
STEPS_PER_EPOCH = 10


def factors(schedule: Schedule) -> list[float]:
    return [learning_rate_factor(schedule, step, STEPS_PER_EPOCH) for step in range(5 * STEPS_PER_EPOCH)]


def test_step_drops_once_to_a_tenth() -> None:
    assert factors(STEP) == [1.0] * 30 + [0.1] * 20


@pytest.mark.parametrize(("epochs", "lr_drop"), [(50, 40), (50, 20), (50, 24), (500, 100), (3, 1)])
def test_step_drops_at_every_multiple_as_published(epochs: int, lr_drop: int) -> None:
    """The published loop: torch's StepLR, moved on once after each epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    published, schedule = torch.optim.lr_scheduler.StepLR(optimizer, lr_drop), Schedule(epochs=epochs, lr_drop=lr_drop)
    for epoch in range(epochs):
        found = [learning_rate_factor(schedule, epoch * 3 + step, 3) for step in range(3)]
        assert found == pytest.approx(published.get_last_lr() * 3, rel=1e-12)
        optimizer.step()
        published.step()


def test_cosine_goes_from_one_to_a_hundredth() -> None:
    expected = [0.01 + 0.99 * (1 + math.cos(math.pi * step / 49)) / 2 for step in range(50)]
    assert factors(COSINE) == pytest.approx(expected)
    assert factors(COSINE)[0] == 1.0
    assert factors(COSINE)[-1] == pytest.approx(0.01)


@pytest.mark.parametrize("kind", ["step", "cosine"])
def test_warmup_rises_linearly_before_the_rest_of_the_schedule(kind: str) -> None:
    schedule = Schedule(kind=kind, epochs=5, lr_drop=3, warmup=0.1)  # the first 5 of 50 steps
    found = factors(schedule)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    if kind == "step":
        assert found[5:] == [1.0] * 25 + [0.1] * 20
    else:
        assert found[5:] == pytest.approx([0.01 + 0.99 * (1 + math.cos(math.pi * i / 44)) / 2 for i in range(45)])


def test_a_warmup_longer_than_the_drop_goes_first() -> None:
    found = factors(Schedule(kind="step", epochs=5, lr_drop=1, warmup=0.5))
    assert found[:25] == pytest.approx([(step + 1) / 25 for step in range(25)])
    assert found[25:] == pytest.approx([0.01] * 5 + [0.001] * 10 + [0.0001] * 10)


def test_a_run_of_one_step() -> None:
    assert learning_rate_factor(Schedule(kind="cosine", epochs=1, lr_drop=None), 0, 1) == 1.0


@pytest.mark.parametrize(("schedule", "drop"), [("50ep", 40), ("150ep", 100), ("500ep", 400), ("300ep", 200)])
def test_published_schedules_at_the_ends_of_epochs(schedule: str, drop: int) -> None:
    """1e-4 and 1e-5 for the backbone, a tenth of both from the first step of epoch `drop` on, until the last."""
    config = load_config([f"schedule={schedule}"]).schedule
    steps = 7393  # COCO in batches of 16
    assert (config.lr, config.lr_backbone, config.weight_decay, config.clip) == (1e-4, 1e-5, 1e-4, 0.1)
    assert config.epochs == int(schedule.removesuffix("ep"))
    at = [0, drop * steps - 1, drop * steps, config.epochs * steps - 1]
    assert [learning_rate_factor(config, step, steps) for step in at] == [1.0, 1.0, 0.1, 0.1]


def test_two_groups_hold_every_trainable_parameter_once() -> None:
    model = small_model("model.backbone=resnet18")
    schedule = small_config("schedule=50ep").schedule
    optimizer = build_optimizer(model, schedule)
    rest, backbone = optimizer.param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert all(names[parameter].startswith("backbone.") for parameter in backbone["params"])
    assert not any(names[parameter].startswith("backbone.") for parameter in rest["params"])
    both = rest["params"] + backbone["params"]
    assert len(both) == len(set(both))
    assert set(both) == {parameter for parameter in model.parameters() if parameter.requires_grad}
    assert (rest["base_lr"], backbone["base_lr"]) == (1e-4, 1e-5)
    assert rest["weight_decay"] == backbone["weight_decay"] == 1e-4


@pytest.mark.parametrize("position", ["sine", "learned"])
@pytest.mark.parametrize("rate", [1e-5, 0.0])
def test_the_groups_go_by_backbone_in_the_published_name(position: str, rate: float) -> None:
    model = small_model("model.backbone=resnet18", f"model.position={position}", f"schedule.lr_backbone={rate}")
    optimizer = build_optimizer(model, Schedule(lr_backbone=rate))
    published: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            published.setdefault(rate if "backbone" in published_name(name) else 1e-4, []).append(parameter)
    assert {group["base_lr"]: group["params"] for group in optimizer.param_groups} == published
    learned = [parameter for name, parameter in model.named_parameters() if name.startswith("position.")]
    assert len(learned) == (2 if position == "learned" else 0)
    assert set(learned) <= set(published.get(rate, []))


def test_a_frozen_backbone_freezes_the_learned_position() -> None:
    model = small_model("model.position=learned", "schedule.lr_backbone=0")
    optimizer = build_optimizer(model, Schedule(lr_backbone=0.0))
    set_learning_rate(optimizer, 1.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if "backbone" not in published_name(name)}


@pytest.mark.parametrize("rate", [1e-5, 0.0])
def test_a_checkpoint_with_the_position_in_the_other_group_is_refused(rate: float) -> None:
    """Older versions had the learned position in the first group; the saved numbers of parameters by group tell."""
    model = small_model("model.position=learned", f"schedule.lr_backbone={rate}")
    optimizer = build_optimizer(model, Schedule(lr_backbone=rate))
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    backbone = [parameter for name, parameter in trained if name.startswith("backbone.")]
    rest = [parameter for name, parameter in trained if not name.startswith("backbone.")]
    groups = [{"params": group} for group in (rest, backbone) if group]
    state = TrainState(model, optimizer)
    content = {**state.state_dict(), "optimizer": torch.optim.AdamW(groups).state_dict()}
    with pytest.raises(
        WeightsError, match=r"^the checkpoint's optimizer has groups of \[\d+.*start again with study=NAME$"
    ):
        state.load_state_dict(content)
    state.load_state_dict(state.state_dict())


def test_a_checkpoint_of_another_model_is_refused_in_one_line() -> None:
    model = small_model()
    state = TrainState(model, build_optimizer(model, Schedule()))
    content = state.state_dict()
    content["model"] = {f"{name}.former": value for name, value in content["model"].items()}
    with pytest.raises(
        WeightsError, match=r"^the checkpoint's model is not the one [^\n]*start again with study=NAME$"
    ):
        state.load_state_dict(content)


def test_the_factor_scales_both_groups_and_does_not_accumulate() -> None:
    optimizer = build_optimizer(small_model(), small_config("schedule=50ep").schedule)
    for factor in (0.5, 0.1, 0.1):
        set_learning_rate(optimizer, factor)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-5, 1e-6])


def test_a_frozen_backbone_has_no_group() -> None:
    optimizer = build_optimizer(small_model("schedule.lr_backbone=0"), small_config("schedule=50ep").schedule)
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["base_lr"] == 1e-4


def test_one_step_is_adamw() -> None:
    """The first step of AdamW: decay, then the learning rate against the gradient's sign."""
    model = small_model()
    optimizer = build_optimizer(model, small_config("schedule=50ep").schedule)
    set_learning_rate(optimizer, 1.0)
    weight = model.class_head.weight
    before = weight.detach().clone()
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    expected = before * (1 - 1e-4 * 1e-4) - 1e-4 * weight.grad.sign()
    assert torch.allclose(weight, expected, rtol=0, atol=1e-8)
