"""Backbones: torchvision's ResNets with frozen batch norm and an optional dilated stage 5, and a tiny one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models.resnet import ResNet
from torchvision.ops import FrozenBatchNorm2d

from fovea_detr.model.frozen_norm import BasicBlock, Bottleneck, ConvNorm

NORMS: dict[str, Callable[..., nn.Module]] = {"frozen": FrozenBatchNorm2d, "trainable": nn.BatchNorm2d}
# Residual blocks of stages 2 to 5, as torchvision builds them.
RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
}


class Backbone(nn.Module):
    """A network body with its output width and its real output stride in pixels.

    channels_last: how its activations lie in memory, whatever the images do; the parameters, and so the checkpoints,
    stay as they are. None, while nothing was measured (see memory_format.py): last in a ResNet on a CPU, else first.
    """

    def __init__(self, body: Body, channels: int, stride: int) -> None:
        super().__init__()
        self.body = body
        self.channels = channels
        self.stride = stride
        self.channels_last: bool | None = None

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] -> [B, channels, rows, columns]; ResNets round the sides / stride up, the tiny body down."""
        last = self.channels_last
        if last is None:
            last = self.body.channels_last_on_cpu and images.device.type == "cpu"
        return self.body(images, last)


class Body(nn.Module):
    """What the bodies share: frozen norms are folded into the convolutions before them, see frozen_norm.py."""

    channels_last_on_cpu = False
    frozen_norms: tuple[FrozenBatchNorm2d, ...]  # found once; a tuple, which leaves the names in the state dict alone

    def forward(self, images: Tensor, channels_last: bool = False) -> Tensor:
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.features(images, ConvNorm(self.frozen_norms, channels_last))

    def features(self, images: Tensor, conv_norm: ConvNorm) -> Tensor:
        raise NotImplementedError

    def find_frozen_norms(self) -> None:
        self.frozen_norms = tuple(module for module in self.modules() if isinstance(module, FrozenBatchNorm2d))


class TinyBody(Body):
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
        self.find_frozen_norms()

    def features(self, images: Tensor, conv_norm: ConvNorm) -> Tensor:
        x = conv_norm(images, self.conv1, self.bn1).relu_()
        for block in self.blocks:
            x = block(x, conv_norm)
        return x


class ResNetBody(Body):
    """torchvision's ResNet up to stage 5, its parameters under torchvision's own names; the classifier is left out."""

    channels_last_on_cpu = True  # R50 at 480x640: 1.2 times faster on one kind of CPU, the same on another

    def __init__(self, name: str, dc5: bool, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        block, depths = RESNETS[name]
        resnet = ResNet(block, depths, replace_stride_with_dilation=[False, False, dc5], norm_layer=norm)
        self.conv1, self.bn1, self.maxpool = resnet.conv1, resnet.bn1, resnet.maxpool
        self.layer1, self.layer2 = resnet.layer1, resnet.layer2
        self.layer3, self.layer4 = resnet.layer3, resnet.layer4
        self.find_frozen_norms()

    def features(self, images: Tensor, conv_norm: ConvNorm) -> Tensor:
        x = self.maxpool(conv_norm(images, self.conv1, self.bn1).relu_())
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = block(x, conv_norm)
        return x


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


def _basic_block(before: int, width: int, stride: int, norm: Callable[..., nn.Module]) -> BasicBlock:
    shortcut = None
    if stride != 1 or before != width:
        shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), norm(width))
    return BasicBlock(before, width, stride, shortcut, norm_layer=norm)
