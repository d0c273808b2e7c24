"""Masks of queries, as published (Carion et al., DETR, 2020, models/segmentation.py): mask attention, then a small FPN.

The published head runs on every query. Here it runs on chosen ones: its norms are per query, so that their masks and
gradients are the same. What does not depend on the query is computed once an image: the adapters, and the cells' share
of the first convolution, which is linear. Parameters are named as published, in `bbox_attention` and `mask_head`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fovea_detr.fovea.separable import Separable

GROUPS = 8  # of a GroupNorm; fewer, which is ours, where 8 does not divide the width
CHUNK = 1 << 25  # values of the largest activation that are computed at once: 128 MiB in float32


@dataclass(frozen=True)
class Seen:
    """What the mask head sees of the detector. decoded [B, Q, D]: of the last layer, normed, as the class head sees it.

    memory [B, K, D], cells [B, K, D] (before any position), is_padding [B, rows, columns], pyramid: C2, C3, C4. size:
    (rows, columns) of the masks.
    """

    decoded: Tensor
    memory: Tensor
    cells: Tensor
    is_padding: Tensor
    pyramid: list[Tensor]
    prior: Separable | None
    size: tuple[int, int]


class MaskAttention(nn.Module):
    """Where each query looks: no values, no position code, and one softmax over heads and cells together."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear, self.k_linear = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, decoded: Tensor, memory: Tensor, is_padding: Tensor, prior: Separable | None = None) -> Tensor:
        """decoded [B, Q, D], memory [B, K, D], is_padding [B, K] -> maps [B, Q, H, K], of which each query's sum to 1.

        prior: a log-prior, added to the scores before the softmax (ours).
        """
        q, k = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, ., D / H]
            for linear, x in ((self.q_linear, decoded), (self.k_linear, memory))
        )
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [B, H, Q, K]
        if prior is not None:
            scores = scores + prior.dense()
        scores = scores.masked_fill(is_padding[:, None, None], float("-inf")).transpose(1, 2)
        return scores.flatten(2).softmax(-1).unflatten(-1, scores.shape[2:])


@dataclass(frozen=True)
class OfImages:
    """What the masks of a batch are computed from. maps [B, Q, H, rows, columns]: of the mask attention.

    cells: [B, D + H, rows, columns], the cells' share of the first layer. adapted: of C4, C3 and C2.
    """

    maps: Tensor
    cells: Tensor
    adapted: tuple[Tensor, ...]


class MaskHead(nn.Module):
    """channels: of the backbone's output C5; C4, C3 and C2 have a half, a quarter and an eighth of them."""

    def __init__(self, hidden: int, heads: int, channels: int) -> None:
        super().__init__()
        self.hidden = hidden
        first, half, quarter, eighth, last = hidden + heads, *(hidden // part for part in (2, 4, 8, 16))
        self.lay1, self.gn1 = conv3x3(first, first), norm(first)
        self.lay2, self.gn2 = conv3x3(first, half), norm(half)
        self.lay3, self.gn3 = conv3x3(half, quarter), norm(quarter)
        self.lay4, self.gn4 = conv3x3(quarter, eighth), norm(eighth)
        self.lay5, self.gn5 = conv3x3(eighth, last), norm(last)
        self.out_lay = conv3x3(last, 1)
        self.adapter1 = nn.Conv2d(channels // 2, half, 1)
        self.adapter2 = nn.Conv2d(channels // 4, quarter, 1)
        self.adapter3 = nn.Conv2d(channels // 8, eighth, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def of_images(self, maps: Tensor, cells: Tensor, pyramid: Sequence[Tensor]) -> OfImages:
        """maps [B, Q, H, K], cells [B, D, rows, columns], pyramid: C2, C3, C4 -> what the masks of queries need."""
        c2, c3, c4 = pyramid
        share = functional.conv2d(cells, self.lay1.weight[:, : self.hidden], self.lay1.bias, padding=1)
        adapted = (self.adapter1(c4), self.adapter2(c3), self.adapter3(c2))
        return OfImages(maps.unflatten(-1, cells.shape[-2:]), share, adapted)

    def of_queries(self, images: OfImages, queries: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """queries: B times [N] int64 -> B times their logits [N, *size], float32.

        Computed in the precision of `images`, and without a graph if these have none.
        """
        largest = images.adapted[-1][0].numel()
        rows = max(1, CHUNK // largest)
        dtype, device = images.cells.dtype, images.cells.device
        found: list[Tensor] = []
        has_graph = torch.is_grad_enabled() and images.cells.requires_grad
        with torch.set_grad_enabled(has_graph), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            for image, chosen in enumerate(queries):
                maps = images.maps[image, chosen.to(device, non_blocking=True)]
                parts = [fitted(self(part, images, image), size) for part in maps.split(rows)]
                found.append(torch.cat(parts).float())
        return found

    def forward(self, maps: Tensor, images: OfImages, image: int | slice) -> Tensor:
        """maps [N, H, rows, columns] of N queries of one image -> logits [N, 1, rows of C2, columns of C2].

        image: of `images`; slice(None): N images, one for each of the maps.
        """
        x = functional.conv2d(maps, self.lay1.weight[:, self.hidden :], padding=1) + images.cells[image]
        x = self.gn2(self.lay2(self.gn1(x).relu())).relu()
        steps = ((self.lay3, self.gn3), (self.lay4, self.gn4), (self.lay5, self.gn5))
        for adapted, (lay, gn) in zip(images.adapted, steps, strict=True):
            x = functional.interpolate(x, size=adapted.shape[-2:], mode="nearest")
            x = gn(lay(x + adapted[image])).relu()
        return self.out_lay(x)


def masks_from(attention: MaskAttention, head: MaskHead, seen: Seen) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """-> `Predictions.mask_head`. What does not depend on the query is computed now, once an image."""
    maps = attention(seen.decoded, seen.memory, seen.is_padding.flatten(1), seen.prior)
    cells = seen.cells.transpose(1, 2).unflatten(-1, seen.is_padding.shape[1:])
    return partial(head.of_queries, head.of_images(maps, cells, seen.pyramid), size=seen.size)


def conv3x3(before: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(before, width, 3, padding=1)


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(GROUPS, width), width)


def fitted(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, 1, rows, columns] -> [N, *size]: cut off, where the backbone has padded its images; the last row or column
    again, where it has dropped pixels. A ResNet does neither."""
    bottom, right = (wanted - found for wanted, found in zip(size, masks.shape[-2:], strict=True))
    if bottom or right:
        masks = masks[..., : size[0], : size[1]]
        masks = functional.pad(masks, (0, max(0, right), 0, max(0, bottom)), mode="replicate")
    return masks[:, 0]
