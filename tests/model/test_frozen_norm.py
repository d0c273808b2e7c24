"""Folded frozen norms against the unfolded twin: torchvision's blocks and FrozenBatchNorm2d on the same modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.ops import FrozenBatchNorm2d

from fovea_detr.model import frozen_norm
from fovea_detr.model.backbone import Backbone, TinyBody, build_backbone
from fovea_detr.model.frozen_norm import ConvNorm
from tests.model.builders import random_image, small_model

KINDS = [("tiny", False), ("resnet18", False), ("resnet50", False), ("resnet50", True)]


def varied(name: str, dc5: bool = False, batch_norm: str = "frozen", train: bool = True) -> Backbone:
    """Norms whose every buffer matters."""
    torch.manual_seed(0)
    backbone = build_backbone(name, dc5=dc5, batch_norm=batch_norm, train=train)
    for norm in norms(backbone):
        norm.weight.copy_(1 + 0.2 * torch.randn_like(norm.weight))
        norm.bias.copy_(0.1 * torch.randn_like(norm.bias))
        norm.running_mean.copy_(0.1 * torch.randn_like(norm.running_mean))
        norm.running_var.copy_(0.5 + torch.rand_like(norm.running_var))
    return backbone


def norms(backbone: nn.Module) -> list[Any]:
    return [module for module in backbone.modules() if isinstance(module, FrozenBatchNorm2d)]


def unfolded(backbone: Backbone, images: Tensor) -> Tensor:
    body: Any = backbone.body
    x = body.bn1(body.conv1(images)).relu()
    is_tiny = isinstance(body, TinyBody)
    x = x if is_tiny else body.maxpool(x)
    for layer in [body.blocks] if is_tiny else [body.layer1, body.layer2, body.layer3, body.layer4]:
        for block in layer:
            theirs: Any = resnet.Bottleneck if isinstance(block, resnet.Bottleneck) else resnet.BasicBlock
            x = theirs.forward(block, x)
    return x


def outcome(
    forward: Callable[[Any, Tensor], Tensor], backbone: nn.Module, images: Tensor, bf16: bool = False
) -> dict[str, Tensor]:
    """Features, and the gradients of the images and of every trained weight, by name."""
    images = images.clone().requires_grad_()
    named = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        features = forward(backbone, images)
    features = features if features.dtype == torch.float64 else features.float()
    direction = torch.randn(features.shape, generator=torch.Generator().manual_seed(3), dtype=features.dtype)
    gradients = torch.autograd.grad((features * direction).sum(), [images, *named.values()])
    return {"features": features.detach(), **dict(zip(["images", *named], gradients, strict=True))}


def worst(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest elementwise difference, relative to the largest value of its tensor."""
    assert ours.keys() == theirs.keys()
    return max(((ours[key] - theirs[key]).abs().max() / theirs[key].abs().max()).item() for key in theirs)


@pytest.mark.parametrize(("name", "dc5"), KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_features_and_gradients_are_those_of_the_unfolded_form(
    name: str, dc5: bool, dtype: torch.dtype, tolerance: float, channels_last: bool
) -> None:
    backbone = varied(name, dc5).to(dtype)
    images = torch.stack([random_image(64, 96, seed) for seed in (0, 1)]).to(dtype)
    theirs = outcome(unfolded, backbone, images)
    backbone.channels_last = channels_last
    ours = outcome(Backbone.forward, backbone, images)
    assert len(ours) > 5
    if name == "resnet50" and dtype == torch.float32:
        # Among its half a million ReLUs one may lie within rounding of 0, and open here and not there: no rounding of
        # one gradient then explains that of another. Each block alone, and float64, are compared elementwise.
        assert worst({"": ours["features"]}, {"": theirs["features"]}) < tolerance
        assert max(errors(ours, theirs).values()) < 0.02
    else:
        assert worst(ours, theirs) < tolerance


@pytest.mark.parametrize("place", ["layer1.0", "layer2.0", "layer3.1", "layer4.0", "layer4.2"])
def test_each_kind_of_bottleneck_in_float32(place: str) -> None:
    """With and without downsampling, and dilated."""
    backbone = varied("resnet50", dc5=True).requires_grad_(True)
    block: Any = backbone.body.get_submodule(place)
    x = torch.randn(2, block.conv1.in_channels, 12, 10).relu()
    conv_norm = ConvNorm(norms(block))
    ours = outcome(lambda block, x: block(x, conv_norm), block, x)
    theirs = outcome(resnet.Bottleneck.forward, block, x)
    assert worst(ours, theirs) < 1e-5


@pytest.mark.parametrize("name", ["tiny", "resnet50"])
def test_under_autocast_to_bf16s_own_noise(name: str) -> None:
    """Noise: how far the unfolded form under autocast is from itself in float32."""
    backbone, images = varied(name), random_image(64, 96)[None]
    exact = outcome(unfolded, backbone, images)
    noise = errors(outcome(unfolded, backbone, images, bf16=True), exact)
    ours = errors(outcome(Backbone.forward, backbone, images, bf16=True), exact)
    assert all(ours[key] < 2 * noise[key] + 5e-3 for key in exact), (ours, noise)


def errors(some: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Each tensor's error, root mean square, relative."""
    return {key: ((some[key] - exact[key]).norm() / exact[key].norm()).item() for key in exact}


def test_the_weight_is_scaled_in_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def conv2d(x: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
        seen.append(weight)
        return torch.conv2d(x, weight, *arguments)

    monkeypatch.setattr(frozen_norm.functional, "conv2d", conv2d)
    backbone, images = varied("tiny"), random_image(64, 64)[None]
    backbone(images)
    expected = list(seen)
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert backbone(images).dtype == torch.bfloat16
    assert len(seen) == len(norms(backbone))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(seen, expected, strict=True))


def test_a_trainable_norm_is_applied_as_it_is() -> None:
    backbone, images = varied("resnet18", batch_norm="trainable").train(), random_image(64, 96)[None].repeat(2, 1, 1, 1)
    backbone.channels_last = False  # as the twin's
    twin = copy.deepcopy(backbone)
    assert worst(outcome(Backbone.forward, backbone, images), outcome(unfolded, twin, images)) == 0
    assert all(torch.equal(a, b) for a, b in zip(backbone.buffers(), twin.buffers(), strict=True))


def test_names_are_torchvisions() -> None:
    theirs = resnet.resnet50(norm_layer=FrozenBatchNorm2d).state_dict()
    ours = build_backbone("resnet50", dc5=False, batch_norm="frozen").body.state_dict()
    assert list(ours) == [name for name in theirs if not name.startswith("fc.")]


def loaded(backbone: Backbone) -> Backbone:
    backbone.load_state_dict({name: 1.3 * value + 0.01 for name, value in backbone.state_dict().items()})
    return backbone


def edited(backbone: Backbone) -> Backbone:
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(1.1)
    for norm in norms(backbone):
        norm.bias.add_(0.2)
        norm.running_var.mul_(2)
    return backbone


def edited_through_data(backbone: Backbone) -> Backbone:
    """Which torch's version counters do not see."""
    for parameter in backbone.parameters():
        parameter.data.mul_(1.1)
    for norm in norms(backbone):
        norm.running_mean.data.add_(0.2)
    return backbone


def replaced(backbone: Backbone) -> Backbone:
    for norm in norms(backbone):
        norm.weight = norm.weight * 1.5
    return backbone


def assigned(backbone: Backbone) -> Backbone:
    state = {name: 1.3 * value + 0.01 for name, value in backbone.state_dict().items()}
    backbone.load_state_dict(state, assign=True)
    return backbone.requires_grad_(False)


CHANGES = [loaded, edited, edited_through_data, replaced, assigned]
CHANGES += [lambda b: b.double(), lambda b: edited(copy.deepcopy(b)), lambda b: loaded(copy.deepcopy(b))]
CHANGES += [lambda b: edited(b.double()).float(), lambda b: loaded(edited(b))]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("train", [False, True])
def test_nothing_is_stale_after_a_change(change: Callable[[Backbone], Backbone], train: bool) -> None:
    """Never trained or trained, in training or evaluation, before the change and after."""
    backbone, images = varied("tiny", train=train), random_image(64, 64)[None]
    with torch.no_grad():
        before = backbone.eval()(images)
        changed = change(backbone)
        images = images.to(next(changed.parameters()).dtype)
        after, expected = changed(images), unfolded(changed, images)
    assert (after - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert after.dtype != before.dtype or not torch.allclose(after, before, rtol=1e-3)


def test_a_copy_does_not_follow_the_original() -> None:
    backbone, images = varied("tiny", train=False), random_image(64, 64)[None]
    before, twin = backbone(images), copy.deepcopy(backbone)
    edited(backbone)
    assert torch.equal(twin(images), before)
    assert not torch.allclose(backbone(images), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_nothing_is_stale_on_another_device() -> None:
    backbone, images = varied("resnet18"), random_image(64, 64)[None]
    backbone(images)
    edited(backbone.cuda())
    expected = unfolded(backbone, images.cuda())
    assert (backbone(images.cuda()) - expected).abs().max() <= 1e-3 * expected.abs().max()  # TF32
    assert torch.allclose(backbone.cpu()(images), unfolded(backbone, images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_every_trained_parameter_has_a_gradient(name: str) -> None:
    """DDP waits for all of them."""
    model = small_model(f"model.backbone={name}").train()
    model.backbone(random_image(64, 64)[None]).sum().backward()
    trained = {name: p for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert trained
    assert all(p.grad is not None and p.grad.any() for p in trained.values())
    assert all(not buffer.requires_grad for buffer in model.backbone.buffers())
