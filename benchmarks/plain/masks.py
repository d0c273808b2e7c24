"""The published mask head and its losses, with our names of parameters: every query, everything repeated."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fovea_detr.types import Target


class PlainMaskAttention(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear, self.k_linear = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(self, decoded: Tensor, memory: Tensor, is_padding: Tensor, log_prior: Tensor | None = None) -> Tensor:
        """decoded [B, Q, D], memory [B, D, rows, columns], is_padding [B, rows, columns] -> [B, Q, H, rows, columns].

        log_prior: [B, H, Q, K], ours.
        """
        (batch, queries, width), heads = decoded.shape, self.heads
        q = self.q_linear(decoded).view(batch, queries, heads, width // heads)
        k = functional.conv2d(memory, self.k_linear.weight[:, :, None, None], self.k_linear.bias)
        k = k.view(batch, heads, width // heads, *memory.shape[-2:])
        scores = torch.einsum("bqnc,bnchw->bqnhw", q * (width / heads) ** -0.5, k)
        if log_prior is not None:
            scores = scores + log_prior.transpose(1, 2).reshape(scores.shape)
        scores = scores.masked_fill(is_padding[:, None, None], float("-inf"))
        return scores.flatten(2).softmax(-1).view_as(scores)


class PlainMaskHead(nn.Module):
    def __init__(self, hidden: int, heads: int, channels: int) -> None:
        super().__init__()
        widths = [hidden + heads, hidden + heads, hidden // 2, hidden // 4, hidden // 8, hidden // 16]
        for i in range(1, 6):
            self.add_module(f"lay{i}", nn.Conv2d(widths[i - 1], widths[i], 3, padding=1))
            self.add_module(f"gn{i}", nn.GroupNorm(math.gcd(8, widths[i]), widths[i]))
        self.out_lay = nn.Conv2d(widths[5], 1, 3, padding=1)
        for i in range(1, 4):
            self.add_module(f"adapter{i}", nn.Conv2d(channels // 2**i, widths[i + 1], 1))

    def forward(self, cells: Tensor, maps: Tensor, pyramid: list[Tensor]) -> Tensor:
        """cells [B, D, rows, columns], maps [B, Q, H, rows, columns], pyramid: C4, C3, C2 -> [B, Q, h / 4, w / 4]."""
        batch, queries = maps.shape[:2]
        part = self.get_submodule
        x = torch.cat((repeated(cells, queries), maps.flatten(0, 1)), dim=1)
        x = functional.relu(part("gn1")(part("lay1")(x)))
        x = functional.relu(part("gn2")(part("lay2")(x)))
        for i, features in enumerate(pyramid, start=1):
            adapted = repeated(part(f"adapter{i}")(features), queries)
            x = adapted + functional.interpolate(x, size=adapted.shape[-2:], mode="nearest")
            x = functional.relu(part(f"gn{i + 2}")(part(f"lay{i + 2}")(x)))
        return self.out_lay(x).view(batch, queries, *x.shape[-2:])


def repeated(x: Tensor, queries: int) -> Tensor:
    """[B, ...] -> [B * Q, ...], the query running fastest."""
    return x[:, None].repeat(1, queries, 1, 1, 1).flatten(0, 1)


def plain_mask_losses(
    masks: Tensor, targets: list[Target], matches: list[tuple[Tensor, Tensor]], num_boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """masks [B, Q, h / 4, w / 4]; matches: (queries, objects) of each image -> mask and dice loss."""
    of_images = [target.masks for target in targets if target.masks is not None]
    height, width = (max(mask.shape[side] for mask in of_images) for side in (1, 2))
    padded = [functional.pad(m.float(), (0, width - m.shape[2], 0, height - m.shape[1])) for m in of_images]
    t = torch.cat([mask[objects] for mask, (_, objects) in zip(padded, matches, strict=True)]).to(masks.device)
    chosen = torch.cat([mask[queries] for mask, (queries, _) in zip(masks, matches, strict=True)])
    x = functional.interpolate(chosen[:, None], (height, width), mode="bilinear", align_corners=False)
    x, t = x.flatten(1), t.flatten(1)
    p = x.sigmoid()
    dice = 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
    p_t = p * t + (1 - p) * (1 - t)
    alpha_t = 0.25 * t + 0.75 * (1 - t)
    entropy = functional.binary_cross_entropy_with_logits(x, t, reduction="none")
    focal = (alpha_t * (1 - p_t) ** 2 * entropy).mean(1)
    return focal.sum() / num_boxes, dice.sum() / num_boxes
