"""The fovea and its attention as published: materialised distances to every cell, and an explicit softmax.

Written from the formulas of Gao et al. (SMCA, 2021), in the order and the memory layout of its code: offsets from every
cell [Q, K, B * H, 2], images and heads last, transposed for the scores [B * H, Q, K]; and the mean of the weights over
heads, which is unused. The rest is batch first, as ours; modules have our names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.plain.layers import MLP

SCALES_PER_HEAD = {"type1": 0, "type2": 1, "type3": 2, "type4": 3}


def cells_xy(rows: int, columns: int, device: torch.device) -> Tensor:
    """-> [K, 2] float32, the (x, y) of every cell, row by row."""
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.stack((x, y), dim=-1).flatten(0, 1).float()


def log_prior(kind: str, centres: Tensor, scales: Tensor | None, cells: Tensor, smooth: float) -> Tensor:
    """centres [Q, B * H, 2], scales [Q, B * H, n] (None: type1), cells [K, 2] -> log-prior [Q, K, B * H]."""
    distance = (centres[:, None] - cells[None, :, None]).pow(2)  # [Q, K, B * H, 2]
    if scales is None:
        distance = distance.sum(-1)
    else:
        scales = (scales * scales)[:, None]  # [Q, 1, B * H, n]
        if kind == "type2":
            distance = distance.sum(-1) * scales[..., 0]
        elif kind == "type3":
            distance = (distance * scales).sum(-1)
        else:
            distance = torch.cat((distance, distance.prod(dim=-1, keepdim=True)), dim=-1)
            distance = (distance * scales).sum(-1)
    return -distance.abs() / smooth


def attend(
    q: Tensor, k: Tensor, v: Tensor, prior: Tensor | None, is_padding: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """q [B, H, Q, d], k and v [B, H, K, d], prior [Q, K, B * H], is_padding [B, K] -> [B, H, Q, d] and the weights.

    Heads are flattened into the batch; dropout applies to the weights [B * H, Q, K].
    """
    batch, heads, num_queries, width = q.shape
    q = (q * width**-0.5).reshape(batch * heads, num_queries, width)
    k, v = (x.reshape(batch * heads, -1, width) for x in (k, v))
    scores = torch.bmm(q, k.transpose(1, 2))
    if is_padding is not None:
        hidden = is_padding[:, None, None]
        scores = scores.view(batch, heads, num_queries, -1).masked_fill(hidden, float("-inf")).flatten(0, 1)
    if prior is not None:
        scores = scores + prior.permute(2, 0, 1)
    weights = functional.dropout(functional.softmax(scores, dim=-1), p=dropout)
    return torch.bmm(weights, v).view(batch, heads, num_queries, width), weights


class PlainPrior(nn.Module):
    """One decoder layer's prior. first: contains the reference's MLP. uses_prior [Q, H]: bool; None: all."""

    uses_prior: Tensor | None

    def __init__(
        self, kind: str, hidden: int, heads: int, smooth: float, first: bool, uses_prior: Tensor | None = None
    ) -> None:
        super().__init__()
        self.kind, self.heads, self.smooth = kind, heads, smooth
        self.norm = nn.LayerNorm(hidden)
        self.reference = MLP(hidden, hidden, 2) if first else None
        self.offset = nn.Linear(hidden, 2 * heads)
        count = heads * SCALES_PER_HEAD[kind]
        self.dynamic_scale = nn.ModuleDict({"scale": nn.Linear(hidden, count)} if count else {})
        self.register_buffer("uses_prior", uses_prior, persistent=False)

    def forward(
        self, content: Tensor, query_embed: Tensor, reference: Tensor | None, extent_cells: Tensor, cells: Tensor
    ) -> tuple[Tensor, Tensor]:
        """content [B, Q, D], query_embed [B, Q, D], reference logits [B, Q, 2], extent [B, 1, 2] as (w, h) in cells.

        Returns the log-prior [Q, K, B * H] and the reference.
        """
        z = self.norm(content + query_embed)
        if self.reference is not None:
            reference = self.reference(z)
        assert reference is not None
        centres = (reference.sigmoid() * extent_cells).repeat(1, 1, self.heads) + self.offset(z)  # [B, Q, 2 H]
        scales = self.dynamic_scale["scale"](z) if self.dynamic_scale else None
        prior = log_prior(
            self.kind, self.last(centres), None if scales is None else self.last(scales), cells, self.smooth
        )
        if self.uses_prior is not None:
            prior = prior.masked_fill(~self.uses_prior.repeat(1, len(z))[:, None], 0.0)
        return prior, reference

    def last(self, of_heads: Tensor) -> Tensor:
        """[B, Q, H * n] -> [Q, B * H, n]."""
        return of_heads.unflatten(-1, (self.heads, -1)).transpose(0, 1).flatten(1, 2)


class PlainCrossAttention(nn.Module):
    """Explicit multi-head attention, because the published one adds the log-prior to its scores."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden))
        self.out_proj = nn.Linear(hidden, hidden)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, prior: Tensor, is_padding: Tensor | None) -> Tensor:
        """query [B, Q, D], key and value [B, K, D], prior [Q, K, B * H], is_padding [B, K] -> [B, Q, D]."""
        # The published attention compares its inputs to choose a packed projection, which waits for the device.
        packed = torch.equal(query, key) or torch.equal(key, value)
        assert not packed, "a decoder's cross-attention has three different inputs"
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            functional.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        attended, weights = attend(q, k, v, prior, is_padding, self.dropout if self.training else 0.0)
        self.mean_weights(weights)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def mean_weights(self, weights: Tensor) -> Tensor:
        """[B * H, Q, K] -> [B, Q, K], as returned by the published attention; its caller ignores it."""
        return weights.unflatten(0, (-1, self.heads)).sum(dim=1) / self.heads
