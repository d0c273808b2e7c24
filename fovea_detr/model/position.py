"""Position encodings of the feature map, as in DETR (Carion et al., 2020): sine or learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SinePosition(nn.Module):
    """Sines and cosines of the cell's position in its own image, normalised to 0..2 pi; the first half of D is y."""

    def __init__(self, hidden: int, temperature: float = 10000.0) -> None:
        super().__init__()
        assert hidden % 4 == 0, "sine positions need a width that is a multiple of 4"
        half = hidden // 2
        power = 2 * torch.div(torch.arange(half, dtype=torch.float32), 2, rounding_mode="floor") / half
        self.register_buffer("period", temperature**power, persistent=False)

    def forward(self, is_padding: Tensor) -> Tensor:
        """is_padding [B, rows, columns] -> [B, rows * columns, D] float32."""
        inside = ~is_padding
        y, x = (inside.cumsum(dim, dtype=torch.float32) for dim in (1, 2))
        y = y / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
        x = x / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
        return torch.cat((self._waves(y), self._waves(x)), dim=-1).flatten(1, 2)

    def _waves(self, angle: Tensor) -> Tensor:
        """[B, rows, columns] -> [B, rows, columns, D / 2]: sine and cosine interleaved."""
        phase = angle[..., None] / self.period  # type: ignore[operator]
        return torch.stack((phase[..., 0::2].sin(), phase[..., 1::2].cos()), dim=-1).flatten(-2)


class LearnedPosition(nn.Module):
    """A learned vector per column and per row, 50 of each as in DETR; the first half of D is the column."""

    LONGEST = 50

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(self.LONGEST, hidden // 2)
        self.col_embed = nn.Embedding(self.LONGEST, hidden // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, is_padding: Tensor) -> Tensor:
        """is_padding [B, rows, columns] -> [B, rows * columns, D]. ValueError above 50 cells a side."""
        batch, rows, columns = is_padding.shape
        if max(rows, columns) > self.LONGEST:
            raise ValueError(
                f"model.position=learned has {self.LONGEST} rows and columns, the feature map has {rows} x {columns}:"
                " use model.position=sine, smaller images, or no dc5"
            )
        y = self.row_embed.weight[:rows, None].expand(-1, columns, -1)
        x = self.col_embed.weight[None, :columns].expand(rows, -1, -1)
        return torch.cat((x, y), dim=-1).flatten(0, 1).expand(batch, -1, -1)
