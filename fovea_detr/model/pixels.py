"""From uint8 pixels to the backbone's input, on the model's device: normalised with ImageNet's mean and deviation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalised(images: Tensor, sizes_hw: Tensor) -> Tensor:
    """uint8 [B, 3, h, w] and the images' own sizes [B, 2] in pixels -> float32, contiguous, zeros in the padding.

    Floating-point images are taken as normalised and returned unchanged. Bit-identical to torchvision's `to_dtype` and
    `normalize` of each image alone. Nothing here synchronises with a GPU.
    """
    if images.is_floating_point():
        return images
    mean, deviation = _constants(images.device)
    # The loader's memory is interleaved (h, w, 3); a convolution rounds planes as it does normalised floats.
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
    pixels = pixels.mul_(1 / 255).sub_(mean).div_(deviation)
    return pixels.masked_fill_(is_padding(sizes_hw, images.shape[-2], images.shape[-1]), 0.0)


def is_padding(sizes_hw: Tensor, height: int, width: int) -> Tensor:
    """[B, 1, height, width] bool, True where a pixel lies outside its image."""
    below = torch.arange(height, device=sizes_hw.device) >= sizes_hw[:, :1]
    right = torch.arange(width, device=sizes_hw.device) >= sizes_hw[:, 1:]
    return (below[:, :, None] | right[:, None, :])[:, None]


@lru_cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation, [3, 1, 1] each, created on the device: a copy from the host would synchronise with it."""
    return _column(IMAGENET_MEAN, device), _column(IMAGENET_STD, device)


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.cat([torch.full((1, 1, 1), value, dtype=torch.float32, device=device) for value in values])
