"""DETR's transformer (Carion et al., 2020), batch first; a decoder layer may have a fovea prior."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from fovea_detr.fovea.prior import CellGrid, FoveaPrior
from fovea_detr.fovea.separable import Separable
from fovea_detr.model.attention import Attention


class FeedForward(nn.Module):
    """A stack of linear layers with ReLU between them; `layers.i` in the parameters' names."""

    def __init__(self, width_in: int, hidden: int, width_out: int, num_layers: int) -> None:
        super().__init__()
        widths = [width_in] + [hidden] * (num_layers - 1) + [width_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)  # linear layers of rows need no views
        for layer in self.layers[:-1]:
            rows = layer(rows).relu()
        return self.layers[-1](rows).unflatten(0, x.shape[:-1])


class Dropout(nn.Dropout):
    """torch's dropout as one operation on a CPU, too, where torch takes four."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.native_dropout(x, self.p, train=True)[0] if self.training and self.p > 0 else x


class _Layer(nn.Module):
    """Base of encoder and decoder layers: residual blocks with the norm after (as published) or before."""

    def __init__(self, hidden: int, feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.linear1 = nn.Linear(hidden, feedforward)
        self.linear2 = nn.Linear(feedforward, hidden)
        self.dropout = Dropout(dropout)
        self.norm1 = nn.LayerNorm(hidden)
        self.norm2 = nn.LayerNorm(hidden)

    def feed_forward(self, x: Tensor) -> Tensor:
        rows = self.linear1(x.flatten(0, 1)).relu()
        return self.linear2(self.dropout(rows)).unflatten(0, x.shape[:2])

    def residual(self, x: Tensor, norm: nn.Module, block: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(block(norm(x)))
        return norm(x + self.dropout(block(x)))


class EncoderLayer(_Layer):
    def __init__(self, hidden: int, heads: int, feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__(hidden, feedforward, dropout, pre_norm)
        self.self_attention = Attention(hidden, heads, dropout)

    def forward(self, cells: Tensor, position: Tensor, may_attend: Tensor) -> Tensor:
        """cells, position [B, K, D]; may_attend [B, 1, 1, K] bool -> [B, K, D]."""

        def attend(x: Tensor) -> Tensor:
            place = x + position
            return self.self_attention(place, place, x, may_attend=may_attend)

        cells = self.residual(cells, self.norm1, attend)
        return self.residual(cells, self.norm2, self.feed_forward)


class DecoderLayer(_Layer):
    """Self-attention over the queries, cross-attention to the cells (with a prior or without), feed-forward."""

    def __init__(
        self, hidden: int, heads: int, feedforward: int, dropout: float, pre_norm: bool, prior: FoveaPrior | None
    ) -> None:
        super().__init__(hidden, feedforward, dropout, pre_norm)
        self.norm3 = nn.LayerNorm(hidden)
        self.self_attention = Attention(hidden, heads, dropout)
        self.cross_attention = Attention(hidden, heads, dropout)
        self.prior = prior

    def forward(
        self,
        content: Tensor,
        query_embed: Tensor,
        memory: Tensor,
        keys: Tensor,
        *,
        may_attend: Tensor | None = None,
        prior: Separable | None = None,
    ) -> Tensor:
        """content [B, Q, D], query_embed [Q, D], memory [B, K, D], keys = memory + position -> [B, Q, D].

        may_attend, prior: of the cross-attention, see Attention.
        """

        def attend_queries(x: Tensor) -> Tensor:
            place = x + query_embed
            return self.self_attention(place, place, x)

        def attend_cells(x: Tensor) -> Tensor:
            return self.cross_attention(x + query_embed, keys, memory, may_attend=may_attend, prior=prior)

        content = self.residual(content, self.norm1, attend_queries)
        content = self.residual(content, self.norm2, attend_cells)
        return self.residual(content, self.norm3, self.feed_forward)


class Encoder(nn.Module):
    def __init__(self, layers: list[EncoderLayer], norm: nn.Module | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, cells: Tensor, position: Tensor, is_padding: Tensor) -> Tensor:
        """cells, position [B, K, D]; is_padding [B, K] -> memory [B, K, D]."""
        may_attend = ~is_padding[:, None, None]
        for layer in self.layers:
            cells = layer(cells, position, may_attend)
        return cells if self.norm is None else self.norm(cells)


class Decoder(nn.Module):
    def __init__(self, layers: list[DecoderLayer], hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(hidden)

    def forward(
        self,
        query_embed: Tensor,
        memory: Tensor,
        position: Tensor,
        sizes_hw: Tensor,
        grid: CellGrid,
        priors: list[Separable] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """query_embed [Q, D], memory and position [B, K, D], sizes_hw [B, 2] pixels. priors: gets the last layer's.

        Returns every layer's normalised output [L, B, Q, D], and the reference logits [B, Q, 2] (None: no fovea).
        """
        content = query_embed.new_zeros(memory.shape[0], *query_embed.shape)
        of_images = query_embed.expand_as(content)  # once, so that its gradient is summed over the images once
        keys, reference, outputs = memory + position, None, []
        is_padding = grid.is_padding()
        may_attend = None if is_padding is None else ~is_padding.flatten(1)[:, None, None]  # [B, 1, 1, K]
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            if layer.prior is None:
                content = layer(content, of_images, memory, keys, may_attend=may_attend)
            else:
                prior, reference = layer.prior(content, query_embed, reference, sizes_hw, grid)
                content = layer(content, of_images, memory, keys, prior=prior)
                if priors is not None:
                    priors[:] = [prior]
            outputs.append(content)
        return self.norm(torch.stack(outputs)), reference
