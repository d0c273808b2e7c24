"""DETR's transformer (Carion et al., 2020); a decoder layer may have a fovea prior.

The stacks take and return [B, n, D]; their layers work on rows [B * n, D], which linear layers need.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from fovea_detr.fovea.prior import CellGrid, FoveaPrior, hiding
from fovea_detr.fovea.separable import Separable
from fovea_detr.model.attention import CrossAttention, ForLayer, SelfAttention, for_layers


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
        return self.linear2(self.dropout(self.linear1(x).relu()))

    def residual(self, x: Tensor, norm: nn.Module, block: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(block(norm(x)))
        return norm(x + self.dropout(block(x)))


class EncoderLayer(_Layer):
    def __init__(self, hidden: int, heads: int, feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__(hidden, feedforward, dropout, pre_norm)
        self.self_attention = SelfAttention(hidden, heads, dropout)

    def forward(self, cells: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        """cells, position: rows [B * K, D]; mask [B, 1, 1, K], see `hiding` -> rows."""

        def attend(x: Tensor) -> Tensor:
            return self.self_attention(x + position, x, mask.shape[0], mask)

        cells = self.residual(cells, self.norm1, attend)
        return self.residual(cells, self.norm2, self.feed_forward)


class DecoderLayer(_Layer):
    """Self-attention over the queries, cross-attention to the cells (with a prior or without), feed-forward."""

    def __init__(
        self, hidden: int, heads: int, feedforward: int, dropout: float, pre_norm: bool, prior: FoveaPrior | None
    ) -> None:
        super().__init__(hidden, feedforward, dropout, pre_norm)
        self.norm3 = nn.LayerNorm(hidden)
        self.self_attention = SelfAttention(hidden, heads, dropout)
        self.cross_attention = CrossAttention(hidden, heads, dropout)
        self.prior = prior

    def forward(
        self,
        content: Tensor,
        query_embed: Tensor,
        memory: ForLayer,
        *,
        mask: Tensor | None = None,
        prior: Separable | None = None,
    ) -> Tensor:
        """content, query_embed: rows [B * Q, D] -> rows. mask, prior: of the cross-attention, see Attention."""

        def attend_queries(x: Tensor) -> Tensor:
            return self.self_attention(x + query_embed, x, memory.key.shape[0])

        def attend_cells(x: Tensor) -> Tensor:
            return self.cross_attention(x + query_embed, memory, mask=mask, prior=prior)

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
        rows, of_cells = cells.flatten(0, 1), position.flatten(0, 1)
        mask = hiding(is_padding, cells.dtype)
        for layer in self.layers:
            rows = layer(rows, of_cells, mask)
        rows = rows if self.norm is None else self.norm(rows)
        return rows.view(cells.shape)


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
        batch = memory.shape[0]
        of_images = query_embed.expand(batch, -1, -1)  # once, so that its gradient is summed over the images once
        of_queries = of_images.flatten(0, 1)  # rows, as all below
        content, reference, outputs = torch.zeros_like(of_queries), None, []
        layers: list[DecoderLayer] = list(self.layers)  # type: ignore[arg-type]
        is_padding = grid.is_padding() if layers[0].prior is None else None  # a prior hides padding itself
        mask = None if is_padding is None else hiding(is_padding.flatten(1), memory.dtype)
        attentions = [layer.cross_attention for layer in layers]
        seen_by_layer = for_layers(attentions, (memory + position).flatten(0, 1), memory.flatten(0, 1), batch)
        for layer, seen in zip(layers, seen_by_layer, strict=True):
            if layer.prior is None:
                content = layer(content, of_queries, seen, mask=mask)
            else:
                images = content.unflatten(0, (batch, -1))
                prior, reference = layer.prior(images, of_images, reference, sizes_hw, grid)
                content = layer(content, of_queries, seen, prior=prior)
                if priors is not None:
                    priors[:] = [prior]
            outputs.append(content)
        outputs = self.norm(torch.stack(outputs)).unflatten(1, (batch, -1))
        return outputs, None if reference is None else reference.logits
