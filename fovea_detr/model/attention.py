"""Multi-head attention on rows [B * n, D]: plain, masked, or with a log-prior on its scores.

Linear layers work on rows; only the attention itself sees [B, H, n, D / H].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fovea_detr.fovea.attend import attend
from fovea_detr.fovea.separable import Separable


class Attention(nn.Module):
    """Base: its parameters are packed and named as in `torch.nn.MultiheadAttention`."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.hidden = hidden
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden))
        self.out_proj = nn.Linear(hidden, hidden)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def attended(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, prior: Separable | None = None) -> Tensor:
        """q, k and v [B, H, n, D / H] -> rows [B * Q, D].

        mask: in the type of q, broadcastable to [B, H, Q, K], added to the scaled scores; -inf hides a key from a
        query. prior: a log-prior, likewise, which hides keys itself. At most one of the two is given.
        """
        assert mask is None or prior is None
        dropout = self.dropout if self.training else 0.0
        if prior is not None:
            out = attend(q, k, v, prior, dropout)
        elif dropout > 0 and q.device.type == "cpu":
            out = dropped_attention(q, k, v, mask, dropout)
        else:
            out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).reshape(-1, self.hidden))


class SelfAttention(Attention):
    def forward(self, place: Tensor, x: Tensor, batch: int, mask: Tensor | None = None) -> Tensor:
        """Rows [B * n, D]: place, of which queries and keys are made, in one multiplication, and x -> rows."""
        sizes = [2 * self.hidden, self.hidden]
        (of_both, of_v), biases = self.in_proj_weight.split(sizes), self.in_proj_bias.split(sizes)
        q, k = by_head(functional.linear(place, of_both, biases[0]), batch, 2, self.heads)
        (v,) = by_head(functional.linear(x, of_v, biases[1]), batch, 1, self.heads)
        return self.attended(q, k, v, mask)


class ForLayer(NamedTuple):
    """What the cross-attention of one layer needs beside its queries: their projection, and keys and values.

    weight [D, D], bias [D]; key and value [B, H, K, D / H].
    """

    weight: Tensor
    bias: Tensor
    key: Tensor
    value: Tensor


class CrossAttention(Attention):
    def forward(
        self, query: Tensor, memory: ForLayer, *, mask: Tensor | None = None, prior: Separable | None = None
    ) -> Tensor:
        """query: rows [B * Q, D] -> rows. mask, prior: see `attended`."""
        return self.attended(self.queries(query, memory), memory.key, memory.value, mask, prior)

    def queries(self, query: Tensor, memory: ForLayer) -> Tensor:
        """Rows [B * Q, D] -> [B, H, Q, D / H]."""
        rows = functional.linear(query, memory.weight, memory.bias)
        return by_head(rows, memory.key.shape[0], 1, self.heads)[0]  # len() would fix the size of a batch in an export


def for_layers(layers: Sequence[CrossAttention], keys: Tensor, values: Tensor, batch: int) -> list[ForLayer]:
    """keys and values: rows [B * K, D], the same for all layers -> what each needs, in two multiplications."""
    hidden, heads = layers[0].hidden, layers[0].heads
    weights = [layer.in_proj_weight.split(hidden) for layer in layers]
    biases = [layer.in_proj_bias.split(hidden) for layer in layers]

    def at_once(rows: Tensor, part: int) -> Sequence[Tensor]:
        weight, bias = (torch.cat([one[part] for one in packed]) for packed in (weights, biases))
        return by_head(functional.linear(rows, weight, bias), batch, len(layers), heads)

    of_queries = ([one[0] for one in packed] for packed in (weights, biases))
    return [ForLayer(*one) for one in zip(*of_queries, at_once(keys, 1), at_once(values, 2), strict=True)]


def by_head(rows: Tensor, batch: int, parts: int, heads: int) -> Sequence[Tensor]:
    """[B * n, parts * D] -> parts times [B, H, n, D / H]."""
    if parts == 1:
        return [rows.view(batch, -1, heads, rows.shape[-1] // heads).transpose(1, 2)]
    return rows.view(batch, -1, parts, heads, rows.shape[-1] // (parts * heads)).permute(2, 0, 3, 1, 4).unbind()


def dropped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """`scaled_dot_product_attention` with dropout on a CPU, where torch has no kernel of its own for it.

    query [B, H, Q, d], key and value [B, H, K, d] -> [B, H, Q, d]; mask as in `Attention.attended`.
    """
    q, k, v = (x.flatten(0, 1) for x in (query, key, value))
    if mask is None:
        mask, beta = q.new_empty(1), 0
    else:
        mask, beta = mask.expand(*query.shape[:2], -1, -1).flatten(0, 1), 1
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), beta=beta, alpha=q.shape[-1] ** -0.5)
    weights, _ = torch.native_dropout(scores.softmax(-1), dropout, train=True)
    return torch.bmm(weights, v).unflatten(0, query.shape[:2])
