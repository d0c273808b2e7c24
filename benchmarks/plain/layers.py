"""Shared by the plain parts: the stack of linear layers, the position encoding, and padding of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class MLP(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__()
        widths = [(width_in, hidden), (hidden, hidden), (hidden, width_out)]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in widths)

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = functional.relu(layer(x)) if i < len(self.layers) - 1 else layer(x)
        return x


def sine_position(is_padding: Tensor, hidden: int) -> Tensor:
    """is_padding [B, rows, columns] -> [B, D, rows, columns]: DETR's sine encoding, normalised to 0..2 pi."""
    own = ~is_padding
    y, x = own.cumsum(1, dtype=torch.float32), own.cumsum(2, dtype=torch.float32)
    y = y / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
    x = x / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
    power = torch.arange(hidden // 2, dtype=torch.float32, device=is_padding.device)
    period = 10000 ** (2 * torch.div(power, 2, rounding_mode="floor") / (hidden // 2))
    x, y = x[..., None] / period, y[..., None] / period
    x = torch.stack((x[..., 0::2].sin(), x[..., 1::2].cos()), dim=4).flatten(3)
    y = torch.stack((y[..., 0::2].sin(), y[..., 1::2].cos()), dim=4).flatten(3)
    return torch.cat((y, x), dim=3).permute(0, 3, 1, 2)


def pad(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Normalised images [3, h, w] -> [B, 3, h, w] with zeros behind each, and is_padding [B, h, w] of every pixel."""
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    padded = torch.zeros(len(images), 3, height, width, dtype=images[0].dtype, device=images[0].device)
    is_padding = torch.ones(len(images), height, width, dtype=torch.bool, device=images[0].device)
    for image, into, hidden in zip(images, padded, is_padding, strict=True):
        into[:, : image.shape[1], : image.shape[2]].copy_(image)
        hidden[: image.shape[1], : image.shape[2]] = False
    return padded, is_padding
