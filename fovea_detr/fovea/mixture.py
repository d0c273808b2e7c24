"""Axis `mixture`: which heads and which queries feel the prior. A new value is one class here and one yaml.

A mixture selects, it never multiplies: 0 x inf is NaN, and an unselected prior must reach neither result nor gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Everywhere:
    """mixture=none: every head of every query feels the prior."""

    def heads(self, num_heads: int) -> Tensor | None:  # noqa: ARG002 - the axis' signature
        """Which heads feel the prior: [H] bool, or None for all."""
        return None

    def queries(self, num_queries: int) -> Tensor | None:  # noqa: ARG002
        """Which queries feel the prior and carry the reference point on their boxes: [Q] bool, or None for all."""
        return None


class HalfTheHeads(Everywhere):
    """mixture=head: the first half of the heads feels the prior, the others attend as in plain DETR.

    With an odd number of heads the first (H + 1) // 2 feel it.
    """

    def heads(self, num_heads: int) -> Tensor:
        return torch.arange(num_heads) < num_heads - num_heads // 2


class HalfTheQueries(Everywhere):
    """mixture=query: the first Q // 2 queries are plain, the others feel the prior."""

    def queries(self, num_queries: int) -> Tensor:
        return torch.arange(num_queries) >= num_queries // 2


class HalfTheHeadsAndQueries(HalfTheHeads, HalfTheQueries):
    """mixture=head_query: both at once."""
