"""Backbones: that they are what their specs say, what is frozen, and where pretrained weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from fovea_detr.config.backbones import BACKBONES
from fovea_detr.errors import WeightsError
from fovea_detr.model.backbone import BODIES, Backbone, build_backbone
from fovea_detr.model.detr import padding_of_cells
from fovea_detr.model.published import in_our_names, is_torchvision
from fovea_detr.training.checkpoint import load_weights, pretrained_state
from tests.model.builders import random_batch, random_image, small_model


@pytest.fixture(scope="module")
def resnet18() -> Backbone:
    return build_backbone("resnet18", dc5=False, batch_norm="frozen")


# One ResNet and all others of torchvision's networks: the part out of which the features come that it shares with ours.
NETWORKS = {name: "features" for name, spec in BACKBONES.items() if spec.body == "features"}
NETWORKS |= {"resnet18": "layer4", "swin_t": "permute"}


@pytest.mark.parametrize(
    ("name", "dc5"), [*((name, False) for name in BACKBONES), *((n, True) for n, spec in BACKBONES.items() if spec.dc5)]
)
def test_channels_and_stride_are_those_of_the_spec(name: str, dc5: bool) -> None:
    spec = BACKBONES[name]
    backbone = build_backbone(name, dc5=dc5, batch_norm="frozen").eval()
    assert backbone.stride == (spec.stride // 2 if dc5 else spec.stride)
    with torch.no_grad():
        features = backbone(random_image(64, 96)[None])
    assert features.shape == (1, spec.channels, 64 // backbone.stride, 96 // backbone.stride)


def test_every_spec_has_a_body_and_the_weights_that_it_states() -> None:
    assert {spec.body for spec in BACKBONES.values()} == set(BODIES)
    known = torchvision.models.list_models(torchvision.models)
    assert {name: name in known for name in BACKBONES} == {name: spec.imagenet for name, spec in BACKBONES.items()}
    for name in set(BACKBONES) & set(known):
        assert "IMAGENET1K_V1" in torchvision.models.get_model_weights(name).__members__


@pytest.mark.parametrize("name", BACKBONES)
def test_batch_norm_is_set_where_the_backbone_has_it(name: str) -> None:
    backbone = build_backbone(name, dc5=False, batch_norm="trainable")
    assert any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()) == BACKBONES[name].batch_norm


@pytest.mark.parametrize("name", NETWORKS)
def test_the_number_of_cells_is_rounded_up_for_any_size(name: str) -> None:
    backbone = build_backbone(name, dc5=False, batch_norm="frozen").eval()
    for size in ((33, 64), (64, 65), (1, 31), (95, 100)):
        with torch.no_grad():
            features = backbone(random_image(*size)[None])
        assert features.shape[-2:] == tuple(-(-side // 32) for side in size)
        for side, cells in zip(size, features.shape[-2:], strict=True):
            assert not padding_of_cells(torch.tensor([side]), side, cells).any()


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t"])
def test_an_odd_size_is_padded_with_zeros_to_whole_strides(name: str) -> None:
    backbone = build_backbone(name, dc5=False, batch_norm="frozen").eval()
    images = random_image(40, 70)[None]
    with torch.no_grad():
        assert torch.equal(backbone(images), backbone(functional.pad(images, (0, 26, 0, 24))))


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t"])
def test_the_memory_format_of_the_images_changes_no_feature(name: str) -> None:
    backbone = build_backbone(name, dc5=False, batch_norm="frozen").eval()
    images = random_image(64, 96)[None]
    with torch.no_grad():
        first = backbone(images)
        backbone.channels_last = True
        torch.testing.assert_close(backbone(images), first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["convnext_tiny", "swin_t"])
def test_a_detector_trains_every_parameter_of_a_backbone_without_frozen_parts(backbone: str) -> None:
    model = small_model(f"model.backbone={backbone}").train()
    predictions = model(random_batch((33, 70), (64, 45)))
    predictions.logits.sum().backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_frozen_batch_norm_has_nothing_to_train_and_never_changes(name: str) -> None:
    backbone = build_backbone(name, dc5=False, batch_norm="frozen").train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    trained = [key for key, p in backbone.named_parameters() if p.requires_grad]
    assert trained
    assert not any("bn" in key or "downsample.1" in key for key in trained)
    before = {key: value.clone() for key, value in backbone.named_buffers()}
    assert before
    backbone(random_image(64, 64)[None]).sum().backward()
    assert all(torch.equal(before[key], value) for key, value in backbone.named_buffers())


def test_trainable_batch_norm_learns_and_keeps_statistics() -> None:
    backbone = build_backbone("tiny", dc5=False, batch_norm="trainable").train()
    assert all(p.requires_grad for p in backbone.parameters())
    norm = backbone.get_submodule("body.bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    backbone(random_image(64, 64)[None])
    assert norm.running_mean is not None
    assert norm.running_mean.any()


def test_stem_and_first_stage_are_never_trained(resnet18: Backbone) -> None:
    stages = {key.split(".")[1]: p.requires_grad for key, p in resnet18.named_parameters()}
    assert stages == {"conv1": False, "layer1": False, "layer2": True, "layer3": True, "layer4": True}


@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
def test_a_learning_rate_of_zero_freezes_all_of_it(backbone: str) -> None:
    model = small_model(f"model.backbone={backbone}", "schedule.lr_backbone=0")
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("backbone."))


@pytest.mark.parametrize("name", ["tiny", "convnext_tiny", "swin_t"])
def test_the_others_have_no_frozen_part(name: str) -> None:
    assert all(p.requires_grad for p in build_backbone(name, dc5=False, batch_norm="trainable").parameters())


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(WeightsError, match="Name or service not known") as caught:
        pretrained_state("resnet18", "imagenet")
    line = str(caught.value)
    assert "\n" not in line
    assert "resnet18-" in line
    assert str(tmp_path) in line
    assert "model.backbone_weights" in line


@pytest.mark.parametrize("name", NETWORKS)
def test_a_torchvision_file_as_it_is_downloaded(name: str, tmp_path: Path) -> None:
    """The same features as torchvision's own network with these weights; the classifier is left out."""
    torch.manual_seed(1)
    whole = torchvision.models.get_model(name, weights=None).eval()
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    torch.save(whole.state_dict(), tmp_path / "file.pth")
    state = pretrained_state(name, str(tmp_path / "file.pth"))
    assert state.keys() == whole.state_dict().keys()
    model = small_model(f"model.backbone={name}")
    report = load_weights(model, state)
    assert not report.skipped
    assert not any(key.startswith("backbone.") for key in report.missing)
    images = random_image(64, 96)[None]
    features: list[Any] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        features.append(output)

    whole.get_submodule(NETWORKS[name]).register_forward_hook(keep)
    with torch.no_grad():
        whole(images)
        assert torch.allclose(model.backbone(images), features[0], atol=1e-4)


def test_the_file_of_another_network_is_refused_in_one_line() -> None:
    state = torchvision.models.swin_t(weights=None).state_dict()
    with pytest.raises(WeightsError, match=r"the model has no backbone\.body\.features[^\n]*$"):
        load_weights(small_model("model.backbone=resnet18"), state)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file") as caught:
        pretrained_state("resnet18", str(tmp_path / "nowhere.pth"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "swin_t", "regnet_x_400mf", "efficientnet_b0"])
def test_a_classifier_of_torchvision_is_known_as_one(name: str) -> None:
    """Also of families that are not in BACKBONES yet; a detector of DETR's names is none."""
    state = torchvision.models.get_model(name).state_dict()
    ours = in_our_names(state)
    assert is_torchvision(state)
    assert all(key.startswith("backbone.body.") for key in ours)
    assert 0 < len(state) - len(ours) <= 4  # weight and bias of the classifier, and a norm before it
    assert not is_torchvision({f"backbone.0.body.{key}": value for key, value in state.items()})
