"""Axis `mixture`: which heads and which queries use the prior. A new value is one class here and one yaml.

A mixture selects, it never multiplies: 0 x inf is NaN, and an unselected prior must not reach the result or a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Everywhere:
    """mixture=none: every head of every query uses the prior."""

    def heads(self, num_heads: int) -> Tensor | None:  # noqa: ARG002 - the axis' signature
        """Which heads use the prior: [H] bool, or None for all."""
        return None

    def queries(self, num_queries: int) -> Tensor | None:  # noqa: ARG002
        """Which queries use the prior and add the reference point to their boxes: [Q] bool, or None for all."""
        return None


class HalfTheHeads(Everywhere):
    """mixture=head: the first half of the heads uses the prior, the others attend as in plain DETR.

    With an odd number of heads, the first (H + 1) // 2 use it.
    """

    def heads(self, num_heads: int) -> Tensor:
        return torch.arange(num_heads) < num_heads - num_heads // 2


class HalfTheQueries(Everywhere):
    """mixture=query: the first Q // 2 queries are plain, the others use the prior."""

    def queries(self, num_queries: int) -> Tensor:
        return torch.arange(num_queries) >= num_queries // 2


class HalfTheHeadsAndQueries(HalfTheHeads, HalfTheQueries):
    """mixture=head_query: both."""
