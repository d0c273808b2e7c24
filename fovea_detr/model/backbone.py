"""The backbones of config/backbones.py: torchvision's ResNets, its ConvNeXt and Swin, and a tiny one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import ResNet
from torchvision.ops import FrozenBatchNorm2d

from fovea_detr.config.backbones import BACKBONES
from fovea_detr.model.frozen_norm import BasicBlock, Bottleneck, ConvNorm

Norm = Callable[..., nn.Module]  # of the number of channels
NORMS: dict[str, Norm] = {"frozen": FrozenBatchNorm2d, "trainable": nn.BatchNorm2d}
# Residual blocks of stages 2 to 5, as torchvision builds them.
RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
}


class Backbone(nn.Module):
    """A network body with the number of its output channels and its actual output stride in pixels.

    channels_last: the memory format of its activations, whatever that of the images; parameters, and so checkpoints,
    are not changed. None before anything is measured (see memory_format.py): last in a ResNet on a CPU, else first.
    """

    def __init__(self, body: Body, channels: int, stride: int) -> None:
        super().__init__()
        self.body = body
        self.channels = channels
        self.stride = stride
        self.channels_last: bool | None = None

    def forward(self, images: Tensor, pyramid: list[Tensor] | None = None) -> Tensor:
        """[B, 3, h, w] -> [B, channels, rows, columns]: the sides / stride, rounded up; by the tiny body, down.

        pyramid: gets the outputs of stages 2 to 5; those of 2 to 4 have strides of 4, 8 and 16 pixels, and an eighth, a
        quarter and a half of the channels.
        """
        last = self.channels_last
        if last is None:
            last = self.body.channels_last_on_cpu and images.device.type == "cpu"
        return self.body(images, last, pyramid)


class Body(nn.Module):
    """Base class: sets the memory format and folds frozen norms into the convolutions before them (frozen_norm.py)."""

    channels_last_on_cpu = False
    frozen_norms: tuple[FrozenBatchNorm2d, ...] = ()  # found once; a tuple is not registered in the state dict

    def forward(self, images: Tensor, channels_last: bool = False, pyramid: list[Tensor] | None = None) -> Tensor:
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.stages(images, ConvNorm(self.frozen_norms, channels_last), pyramid)

    def stages(self, images: Tensor, conv_norm: ConvNorm, pyramid: list[Tensor] | None) -> Tensor:
        raise NotImplementedError

    def find_frozen_norms(self) -> None:
        self.frozen_norms = tuple(module for module in self.modules() if isinstance(module, FrozenBatchNorm2d))


class TinyBody(Body):
    """Stem 4x4 / 4 and four BasicBlocks of width 16, 32, 64, 128 with strides 1, 2, 2, 1: output stride 16."""

    STEM = 4  # pixels: the kernel; shorter images are padded with zeros
    WIDTHS = (16, 32, 64, 128)
    STRIDES = (1, 2, 2, 1)

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, self.WIDTHS[0], self.STEM, stride=self.STEM, bias=False)
        self.bn1 = norm(self.WIDTHS[0])
        blocks, before = [], self.WIDTHS[0]
        for width, stride in zip(self.WIDTHS, self.STRIDES, strict=True):
            blocks.append(_basic_block(before, width, stride, norm))
            before = width
        self.blocks = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.find_frozen_norms()

    def stages(self, images: Tensor, conv_norm: ConvNorm, pyramid: list[Tensor] | None) -> Tensor:
        if min(images.shape[-2:]) < self.STEM:
            bottom, right = (max(0, self.STEM - side) for side in images.shape[-2:])
            images = functional.pad(images, (0, right, 0, bottom))
        x = conv_norm(images, self.conv1, self.bn1).relu_()
        for block in self.blocks:
            x = block(x, conv_norm)
            if pyramid is not None:
                pyramid.append(x)
        return x


class ResNetBody(Body):
    """torchvision's ResNet up to stage 5, with torchvision's parameter names; the classifier is left out."""

    channels_last_on_cpu = True  # R50 at 480x640: 1.2 times faster on one CPU model, no difference on another

    def __init__(self, name: str, dc5: bool, norm: Norm) -> None:
        super().__init__()
        block, depths = RESNETS[name]
        resnet = ResNet(block, depths, replace_stride_with_dilation=[False, False, dc5], norm_layer=norm)
        self.conv1, self.bn1, self.maxpool = resnet.conv1, resnet.bn1, resnet.maxpool
        self.layer1, self.layer2 = resnet.layer1, resnet.layer2
        self.layer3, self.layer4 = resnet.layer3, resnet.layer4
        self.find_frozen_norms()

    def stages(self, images: Tensor, conv_norm: ConvNorm, pyramid: list[Tensor] | None) -> Tensor:
        x = self.maxpool(conv_norm(images, self.conv1, self.bn1).relu_())
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = block(x, conv_norm)
            if pyramid is not None:
                pyramid.append(x)
        return x


class FeaturesBody(Body):
    """A torchvision network with `features` (and Swin's last `norm`), with its names; the classifier is left out.

    Images are padded with zeros to whole strides of 32 pixels: ConvNeXt and Swin's first layer would drop the rest.
    """

    STRIDE = 32

    def __init__(self, name: str, norm: Norm | None = None) -> None:
        super().__init__()
        network: Any = torchvision.models.get_model(name, weights=None, norm_layer=norm)  # None: its own
        self.features: nn.Sequential = network.features  # the stem, stage 2, a reduction, stage 3, ..., stage 5
        self.norm: nn.Module | None = getattr(network, "norm", None)  # Swin's, over channels in the last dimension

    def stages(self, images: Tensor, conv_norm: ConvNorm, pyramid: list[Tensor] | None) -> Tensor:  # noqa: ARG002
        bottom, right = (-side % self.STRIDE for side in images.shape[-2:])
        x = functional.pad(images, (0, right, 0, bottom))
        for i, part in enumerate(self.features):
            x = part(x)
            if pyramid is not None and i % 2 == 1:
                pyramid.append(x if self.norm is None else x.permute(0, 3, 1, 2))
        return x if self.norm is None else self.norm(x).permute(0, 3, 1, 2)


# `body` of a BackboneSpec -> its builder, called with (name, dc5, norm)
BODIES: dict[str, Callable[[str, bool, Norm], Body]] = {
    "resnet": ResNetBody,
    "features": lambda name, _dc5, norm: FeaturesBody(name, norm if BACKBONES[name].batch_norm else None),
    "tiny": lambda _name, _dc5, norm: TinyBody(norm),
}


def build_backbone(name: str, *, dc5: bool, batch_norm: str, train: bool = True) -> Backbone:
    """name: a key of BACKBONES; batch_norm: frozen | trainable. The spec's `frozen` parts are never trained.

    dc5: stage 5 is dilated, which halves the stride. train=False freezes the whole backbone.
    """
    spec = BACKBONES[name]
    body = BODIES[spec.body](name, dc5, partial(NORMS[batch_norm], eps=spec.eps))
    for part in spec.frozen:
        body.get_submodule(part).requires_grad_(False)
    backbone = Backbone(body, spec.channels, spec.stride // 2 if dc5 else spec.stride)
    return backbone if train else backbone.requires_grad_(False)


def _basic_block(before: int, width: int, stride: int, norm: Norm) -> BasicBlock:
    shortcut = None
    if stride != 1 or before != width:
        shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), norm(width))
    return BasicBlock(before, width, stride, shortcut, norm_layer=norm)
