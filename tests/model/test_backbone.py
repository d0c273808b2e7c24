"""Backbones: their real stride, what is frozen, and where pretrained weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from fovea_detr.errors import WeightsError
from fovea_detr.model.backbone import Backbone, build_backbone
from fovea_detr.training.checkpoint import pretrained_state
from tests.model.builders import random_image, small_model


@pytest.fixture(scope="module")
def resnet18() -> Backbone:
    return build_backbone("resnet18", dc5=False, batch_norm="frozen")


@pytest.mark.parametrize(
    ("name", "dc5", "stride", "channels"),
    [
        ("tiny", False, 16, 128),
        ("resnet18", False, 32, 512),
        ("resnet34", False, 32, 512),
        ("resnet50", False, 32, 2048),
        ("resnet50", True, 16, 2048),
    ],
)
def test_the_stride_is_real(name: str, dc5: bool, stride: int, channels: int) -> None:
    backbone = build_backbone(name, dc5=dc5, batch_norm="frozen").eval()
    assert (backbone.stride, backbone.channels) == (stride, channels)
    with torch.no_grad():
        features = backbone(random_image(64, 96)[None])
    assert features.shape == (1, channels, 64 // stride, 96 // stride)


@pytest.mark.parametrize("size", [(33, 64), (64, 65), (1, 31)])
def test_any_size_has_a_cell_for_every_started_stride(size: tuple[int, int], resnet18: Backbone) -> None:
    features = resnet18(random_image(*size)[None])
    assert features.shape[-2:] == tuple(-(-side // 32) for side in size)


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


def test_the_tiny_one_has_no_frozen_stem() -> None:
    assert build_backbone("tiny", dc5=False, batch_norm="frozen").get_submodule("body.conv1").weight.requires_grad


def test_no_network_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


def test_a_torchvision_file_as_it_is_downloaded(tmp_path: Path) -> None:
    """The same features as torchvision's own network with these weights."""
    torch.manual_seed(1)
    whole = torchvision.models.resnet18(weights=None).eval()
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    torch.save(whole.state_dict(), tmp_path / "resnet18.pth")
    state = pretrained_state("resnet18", str(tmp_path / "resnet18.pth"))
    assert state.keys() == whole.state_dict().keys()
    body = build_backbone("resnet18", dc5=False, batch_norm="frozen").body
    report = body.load_state_dict(state, strict=False)
    assert not report.missing_keys
    assert {key.split(".")[-1] for key in report.unexpected_keys} <= {"weight", "bias", "num_batches_tracked"}
    images = random_image(64, 64)[None]
    features: list[Any] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        features.append(output)

    whole.layer4.register_forward_hook(keep)
    with torch.no_grad():
        whole(images)
        assert torch.allclose(body(images), features[0], atol=1e-4)


def test_a_missing_file_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file") as caught:
        pretrained_state("resnet18", str(tmp_path / "nowhere.pth"))
    assert "\n" not in str(caught.value)
