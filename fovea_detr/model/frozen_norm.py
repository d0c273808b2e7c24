"""Frozen batch norm folded into the convolution before it: `w' = w * scale` and a bias, one operation, not three.

Folded weights are computed in every forward pass, so they are never stale: the scales and shifts of all norms at once,
from their current buffers, in about ten small operations whatever the depth. Gradients reach the convolution's own
weight through `w'` and equal those of the unfolded form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet
from torchvision.ops import FrozenBatchNorm2d


class ConvNorm:
    """A convolution and its norm in one operation, for one forward pass: `conv_norm(x, conv, norm)`.

    norms: the frozen ones; any other norm is applied unfolded. channels_last: the memory format of images and weights.
    """

    def __init__(self, norms: Sequence[FrozenBatchNorm2d], channels_last: bool = False) -> None:
        pairs = scales_and_shifts(norms) if norms else []
        self.folded: dict[nn.Module, tuple[Tensor, Tensor]] = dict(zip(norms, pairs, strict=True))
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
        """x [B, channels, rows, columns] -> the same as `norm(conv(x))`; the result may be changed in place."""
        if norm not in self.folded:
            return norm(conv(x))
        scale, shift = self.folded[norm]
        # Under autocast, too, the product is float32; autocast converts it once, for the convolution.
        weight = (conv.weight * scale).contiguous(memory_format=self.memory_format)
        return functional.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def scales_and_shifts(norms: Sequence[FrozenBatchNorm2d]) -> list[tuple[Tensor, Tensor]]:
    """Each norm's factor on the weight of a convolution, [channels, 1, 1, 1], and its shift [channels].

    They are views of two tensors that hold all norms.
    """
    weight, bias, mean, variance = (
        torch.cat([getattr(norm, name) for norm in norms]) for name in ("weight", "bias", "running_mean", "running_var")
    )
    assert len({norm.eps for norm in norms}) == 1
    scale = weight * (variance + norms[0].eps).rsqrt()
    shift = bias - mean * scale
    if torch.is_autocast_enabled(shift.device.type):  # all at once; the factors' products are float32
        shift = shift.to(torch.get_autocast_dtype(shift.device.type))
    channels = [len(norm.weight) for norm in norms]  # type: ignore[arg-type]
    return list(zip(scale[:, None, None, None].split(channels), shift.split(channels), strict=True))


class BasicBlock(resnet.BasicBlock):
    """torchvision's block of ResNet-18 and 34, with its convolutions and norms folded."""

    def forward(self, x: Tensor, conv_norm: ConvNorm) -> Tensor:
        out = conv_norm(x, self.conv1, self.bn1).relu_()
        out = conv_norm(out, self.conv2, self.bn2)
        return out.add_(_shortcut(self, x, conv_norm)).relu_()


class Bottleneck(resnet.Bottleneck):
    """torchvision's block of the deeper ResNets, likewise."""

    def forward(self, x: Tensor, conv_norm: ConvNorm) -> Tensor:
        out = conv_norm(x, self.conv1, self.bn1).relu_()
        out = conv_norm(out, self.conv2, self.bn2).relu_()
        out = conv_norm(out, self.conv3, self.bn3)
        return out.add_(_shortcut(self, x, conv_norm)).relu_()


def _shortcut(block: BasicBlock | Bottleneck, x: Tensor, conv_norm: ConvNorm) -> Tensor:
    if block.downsample is None:
        return x
    return conv_norm(x, *block.downsample.children())  # type: ignore[arg-type]
