"""Multi-head attention, batch first: plain, masked, or with a log-prior on its scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fovea_detr.fovea.attend import attend
from fovea_detr.fovea.separable import Separable


class Attention(nn.Module):
    """Multi-head attention whose parameters are packed and named as in `torch.nn.MultiheadAttention`."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden))
        self.out_proj = nn.Linear(hidden, hidden)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        may_attend: Tensor | None = None,
        prior: Separable | None = None,
    ) -> Tensor:
        """query [B, Q, D], key and value [B, K, D] -> [B, Q, D].

        may_attend: bool, broadcastable to [B, H, Q, K]; False hides a key from a query. prior: a log-prior, added to
        the scaled scores, which hides keys itself by -inf. At most one of the two is given.
        """
        assert may_attend is None or prior is None
        q, k, v = self.projected(query, key, value)
        dropout = self.dropout if self.training else 0.0
        if prior is not None:
            attended = attend(q, k, v, prior, dropout)
        elif dropout > 0 and q.device.type == "cpu":
            attended = dropped_attention(q, k, v, may_attend, dropout)
        else:
            attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=may_attend, dropout_p=dropout)
        rows = attended.transpose(1, 2).reshape(-1, query.shape[-1])  # linear layers of [B * n, D] need no views
        return self.out_proj(rows).unflatten(0, query.shape[:2])

    def projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> [B, H, n, D / H] each. Queries and keys from one tensor, as in self-attention, are one multiplication."""
        batch, hidden = query.shape[0], query.shape[-1]  # len() would fix the size of a batch in an export
        if query is key:
            both, v = self.linear((key, value), [2 * hidden, hidden])
            q, k = both.view(batch, -1, 2, self.heads, hidden // self.heads).permute(2, 0, 3, 1, 4).unbind()
            return q, k, self.by_head(v, batch)
        q, k, v = (self.by_head(x, batch) for x in self.linear((query, key, value), [hidden] * 3))
        return q, k, v

    def linear(self, inputs: tuple[Tensor, ...], sizes: list[int]) -> list[Tensor]:
        """Inputs [B, n, D], each by its part of the packed parameters, of these sizes -> rows [B * n, size]."""
        rows = (x.flatten(0, 1) for x in inputs)
        return list(map(functional.linear, rows, self.in_proj_weight.split(sizes), self.in_proj_bias.split(sizes)))

    def by_head(self, rows: Tensor, batch: int) -> Tensor:
        """[B * n, D] -> [B, H, n, D / H]."""
        return rows.view(batch, -1, self.heads, rows.shape[-1] // self.heads).transpose(1, 2)


def dropped_attention(query: Tensor, key: Tensor, value: Tensor, may_attend: Tensor | None, dropout: float) -> Tensor:
    """`scaled_dot_product_attention` with dropout on a CPU, where torch has no kernel of its own for it.

    query [B, H, Q, d], key and value [B, H, K, d] -> [B, H, Q, d]; may_attend as in `Attention.forward`.
    """
    q, k, v = (x.flatten(0, 1) for x in (query, key, value))
    if may_attend is None:
        mask, beta = q.new_empty(1), 0
    else:
        mask, beta = may_attend.log().to(q.dtype), 1  # 0, or -inf
        mask = mask.expand(*query.shape[:2], -1, -1).flatten(0, 1)
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), beta=beta, alpha=q.shape[-1] ** -0.5)
    weights, _ = torch.native_dropout(scores.softmax(-1), dropout, train=True)
    return torch.bmm(weights, v).unflatten(0, query.shape[:2])
