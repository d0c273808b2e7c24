"""The mask head's part of a training step: ours, on matched queries, against the published one, on every query.

Forward pass, both losses and backward pass at a frozen detector's outputs, which are drawn: one image of 320 x 480
pixels, width 256, features of ResNet-50, 7 objects.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.criterion import OBJECTS
from benchmarks.measure import GIVEN_BACK, MIB, fresh, in_turn, peak_bytes
from benchmarks.plain.masks import PlainMaskAttention, PlainMaskHead, plain_mask_losses
from fovea_detr.loss.masks import mask_losses
from fovea_detr.model.masks import MaskAttention, MaskHead, Seen, masks_from
from fovea_detr.types import Predictions, Target

HIDDEN, HEADS, CHANNELS = 256, 8, 2048
HEIGHT, WIDTH = 320, 480
SIDES = ("plain", "ours")


class Heads:
    """Both sides with the same weights. `ours` and `plain` return the sum of the losses after its backward pass."""

    def __init__(self, queries: int, device: str = "cpu", size_hw: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
        draw = torch.Generator().manual_seed(4)
        self.queries, self.device, (height, width) = queries, torch.device(device), size_hw
        of_stride = lambda channels, stride: (1, channels, height // stride, width // stride)  # noqa: E731
        shapes = [of_stride(CHANNELS >> i, 2 ** (5 - i)) for i in (3, 2, 1)]
        self.pyramid = [torch.randn(shape, generator=draw).relu().to(device) for shape in shapes]
        self.cells, self.memory = (torch.randn(of_stride(HIDDEN, 32), generator=draw).to(device) for _ in range(2))
        self.decoded = torch.randn(1, queries, HIDDEN, generator=draw).to(device)
        masks = torch.rand(OBJECTS, height, width, generator=draw) < 0.3
        self.targets = [Target(torch.ones(OBJECTS), torch.ones(OBJECTS, 4), masks)]
        self.matches = [(torch.arange(0, queries, queries // OBJECTS)[:OBJECTS], torch.arange(OBJECTS))]
        self.num_boxes = torch.full((1,), float(OBJECTS), device=device)
        torch.manual_seed(0)
        self.attention = MaskAttention(HIDDEN, HEADS).to(device)
        self.head = MaskHead(HIDDEN, HEADS, CHANNELS).to(device)
        self.plain_attention = PlainMaskAttention(HIDDEN, HEADS).to(device)
        self.plain_head = PlainMaskHead(HIDDEN, HEADS, CHANNELS).to(device)
        self.plain_attention.load_state_dict(self.attention.state_dict())
        self.plain_head.load_state_dict(self.head.state_dict())

    def ours(self) -> Tensor:
        memory, cells = (x.flatten(2).transpose(1, 2) for x in (self.memory, self.cells))
        padding = torch.zeros(1, *self.cells.shape[-2:], dtype=torch.bool, device=self.device)
        size = (self.pyramid[0].shape[-2], self.pyramid[0].shape[-1])
        seen = Seen(self.decoded, memory, cells, padding, self.pyramid, None, size)
        out = Predictions(torch.zeros(1, 1, self.queries, 1), torch.zeros(1, 1, self.queries, 4))
        out.mask_head = masks_from(self.attention, self.head, seen)
        losses = mask_losses(out, self.targets, self.matches, self.num_boxes)
        return trained(losses["mask"] + losses["dice"])

    def plain(self) -> Tensor:
        padding = torch.zeros(1, *self.cells.shape[-2:], dtype=torch.bool, device=self.device)
        maps = self.plain_attention(self.decoded, self.memory, padding)
        masks = self.plain_head(self.cells, maps, self.pyramid[::-1])
        return trained(sum(plain_mask_losses(masks, self.targets, self.matches, self.num_boxes)))  # type: ignore[arg-type]


def trained(total: Tensor) -> Tensor:
    total.sum().backward()
    return total.detach()


def peak(side: str, queries: int, device: str = "cpu") -> int:
    """Bytes of one step above weights and features, after one at 32 x 32 pixels."""
    getattr(Heads(7, device, (32, 32)), side)()
    heads = Heads(queries, device)
    return peak_bytes(lambda: getattr(heads, side)(), torch.device(device))


def rows(runs: int, device: str = "cpu") -> list[dict[str, Any]]:
    found = []
    for queries in (100, 300):
        heads = Heads(queries, device)
        plain, ours = in_turn(heads.plain, heads.ours, runs, device)
        apart = abs(heads.plain().item() - heads.ours().item())
        peaks = [
            fresh("benchmarks.masks:peak", GIVEN_BACK, side=s, queries=queries, device=device) / MIB for s in SIDES
        ]
        part = f"mask head + losses, forward + backward, {queries} queries, {OBJECTS} objects, {HEIGHT}x{WIDTH}"
        row = {"part": part, "plain": plain, "ours": ours, "unit": "s", "ratio": plain / ours, "memory": peaks}
        found.append({**row, "note": f"losses {apart:.0e} apart", "target": queries / OBJECTS / 2})
    return found
