"""channels_last: the rule, its measurement, and that nothing but time depends on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fovea_detr.model import memory_format
from fovea_detr.model.backbone import Backbone, build_backbone
from fovea_detr.model.memory_format import is_faster, pays_channels_last
from tests.model.builders import random_batch, random_image, small_model


@pytest.fixture
def backbone() -> Backbone:
    return build_backbone("tiny", dc5=False, batch_norm="trainable").train()


def clock(monkeypatch: pytest.MonkeyPatch, seconds: dict[bool, list[float]]) -> list[bool]:
    """Passes take these seconds, by format; -> the formats in the order of their measurement."""
    asked: list[bool] = []

    def pass_seconds(backbone: nn.Module, images: Tensor, precision: str) -> float:
        assert isinstance(backbone, Backbone)
        memory_format_of = bool(backbone.channels_last)
        asked.append(memory_format_of)
        assert (len(images), precision) == (1, "bf16")
        return seconds[memory_format_of][asked.count(memory_format_of) - 1]

    monkeypatch.setattr(memory_format, "pass_seconds", pass_seconds)
    return asked


@pytest.mark.parametrize(
    ("last", "pays"),
    [([9, 1.0, 1.0, 9.0], True), ([0, 1.97, 1.96, 1.0], False), ([9, 2.1, 2.1, 2.1], False), ([0, 1.99] * 2, False)],
)
def test_medians_of_passes_in_turn_without_the_first(
    monkeypatch: pytest.MonkeyPatch, backbone: Backbone, last: list[float], pays: bool
) -> None:
    asked = clock(monkeypatch, {False: [0, 2.0, 2.0, 2.0], True: last})
    assert is_faster(backbone, random_image(32, 32)[None], "bf16", runs=3) == pays
    assert asked == [False, True] * 4
    assert not backbone.channels_last


def test_nothing_is_measured_on_a_cpu(monkeypatch: pytest.MonkeyPatch, backbone: Backbone) -> None:
    asked = clock(monkeypatch, {})
    assert not pays_channels_last(backbone, random_image(32, 32)[None], "bf16")
    assert not asked


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_measurement_restores_everything(backbone: Backbone, precision: str) -> None:
    backbone.body.get_submodule("bn1").eval()
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    modes, random_state = [m.training for m in backbone.modules()], torch.get_rng_state()
    is_faster(backbone, random_image(64, 64)[None], precision, runs=1)
    assert all(torch.equal(state[name], value) for name, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert modes == [m.training for m in backbone.modules()]
    assert torch.equal(random_state, torch.get_rng_state())


def test_a_failed_measurement_restores_everything(monkeypatch: pytest.MonkeyPatch, backbone: Backbone) -> None:
    monkeypatch.setattr(memory_format, "pass_seconds", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        is_faster(backbone, random_image(32, 32)[None], "fp32", runs=1)
    assert backbone.training
    assert not backbone.channels_last


def test_a_backbone_that_is_not_trained_is_measured_too() -> None:
    backbone = build_backbone("tiny", dc5=False, batch_norm="frozen", train=False)
    assert memory_format.pass_seconds(backbone, random_image(64, 64)[None], "fp32") > 0


@pytest.mark.parametrize(("name", "expected"), [("resnet18", True), ("tiny", False)])
def test_on_a_cpu_the_rule_is_fixed(name: str, expected: bool) -> None:
    features = build_backbone(name, dc5=False, batch_norm="frozen")(random_image(64, 96)[None].repeat(2, 1, 1, 1))
    assert features.is_contiguous(memory_format=torch.channels_last) == expected


def test_activations_follow_and_the_state_dict_does_not() -> None:
    model, batch = small_model(), random_batch((96, 64), (64, 96))
    before = model(batch)
    strides = {name: value.stride() for name, value in model.state_dict().items()}
    model.backbone.channels_last = True
    assert model.backbone(batch.images).is_contiguous(memory_format=torch.channels_last)
    after = model(batch)
    assert torch.allclose(before.logits, after.logits, atol=1e-5)
    after.logits.sum().backward()
    assert strides == {name: value.stride() for name, value in model.state_dict().items()}
    gradients = [p.grad for p in model.backbone.parameters() if p.requires_grad]
    assert all(grad is not None and grad.is_contiguous() for grad in gradients)  # as the fused optimizer wants them


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_is_measured() -> None:
    backbone = build_backbone("resnet18", dc5=False, batch_norm="frozen").cuda()
    answer = pays_channels_last(backbone, random_image(256, 256)[None].cuda(), "bf16", runs=2)
    assert isinstance(answer, bool)
    assert not backbone.channels_last
