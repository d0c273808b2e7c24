"""Backbones: torchvision's ResNets with frozen batch norm and an optional dilated stage 5, and a tiny one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FrozenBatchNorm2d

from fovea_detr.errors import WeightsError

NORMS: dict[str, Callable[..., nn.Module]] = {"frozen": FrozenBatchNorm2d, "trainable": nn.BatchNorm2d}


class Backbone(nn.Module):
    """A network body with its output width and its real output stride in pixels."""

    def __init__(self, body: nn.Module, channels: int, stride: int) -> None:
        super().__init__()
        self.body = body
        self.channels = channels
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] -> [B, channels, rows, columns]; ResNets round the sides / stride up, the tiny body down."""
        return self.body(images)


class TinyBody(nn.Module):
    """Stem 4x4 / 4 and four BasicBlocks of width 16, 32, 64, 128 with strides 1, 2, 2, 1: output stride 16."""

    WIDTHS = (16, 32, 64, 128)
    STRIDES = (1, 2, 2, 1)

    def __init__(self, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, self.WIDTHS[0], kernel_size=4, stride=4, bias=False)
        self.bn1 = norm(self.WIDTHS[0])
        blocks, before = [], self.WIDTHS[0]
        for width, stride in zip(self.WIDTHS, self.STRIDES, strict=True):
            blocks.append(_basic_block(before, width, stride, norm))
            before = width
        self.blocks = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.bn1(self.conv1(images)).relu())


class ResNetBody(nn.Module):
    """torchvision's ResNet up to stage 5, its parameters under torchvision's own names; the classifier is left out."""

    def __init__(self, name: str, dc5: bool, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        build = getattr(torchvision.models, name)
        resnet = build(weights=None, replace_stride_with_dilation=(False, False, dc5), norm_layer=norm)
        for part in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(part, getattr(resnet, part))

    def forward(self, images: Tensor) -> Tensor:
        for part in self.children():
            images = part(images)
        return images


def build_backbone(name: str, *, dc5: bool, batch_norm: str, train: bool = True) -> Backbone:
    """name: resnet18 | resnet34 | resnet50 | resnet101 | tiny; batch_norm: frozen | trainable.

    As published, a ResNet's stem and stage 2 (`conv1`, `layer1`) are never trained; train=False freezes all of it.
    """
    norm = NORMS[batch_norm]
    if name == "tiny":
        backbone = Backbone(TinyBody(norm), channels=TinyBody.WIDTHS[-1], stride=16)
    else:
        channels = 512 if name in ("resnet18", "resnet34") else 2048
        backbone = Backbone(ResNetBody(name, dc5, norm), channels, stride=16 if dc5 else 32)
        for part in ("conv1", "bn1", "layer1"):
            getattr(backbone.body, part).requires_grad_(False)
    return backbone if train else backbone.requires_grad_(False)


def pretrained_state(name: str, source: str) -> dict[str, Tensor]:
    """A torchvision ResNet's state dict: source is "imagenet" (torchvision's download, cached by torch.hub) or a path.

    Raises WeightsError in one line when there is no network or the file is no ResNet of that kind.
    """
    if source != "imagenet":
        from fovea_detr.checkpoint import read_state_dict

        return read_state_dict(Path(source).expanduser())
    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise WeightsError(
            f"the ImageNet weights of {name} could not be downloaded ({str(error) or type(error).__name__}): put "
            f"{weights.url.rsplit('/', 1)[-1]} into {folder}, or set model.backbone_weights=PATH (or none)"
        ) from None


def _basic_block(before: int, width: int, stride: int, norm: Callable[..., nn.Module]) -> BasicBlock:
    shortcut = None
    if stride != 1 or before != width:
        shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), norm(width))
    return BasicBlock(before, width, stride, shortcut, norm_layer=norm)
