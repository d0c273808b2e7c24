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
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        q, k, v = (
            functional.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, ., D / H]
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        dropout = self.dropout if self.training else 0.0
        if prior is not None:
            attended = attend(q, k, v, prior, dropout)
        else:
            attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=may_attend, dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))
