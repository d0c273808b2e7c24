"""A value for every (query, cell) pair in separable form: parts per column and per row instead of one per cell."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Separable(NamedTuple):
    """`x[column] + y[row] + xy_x[column] * xy_y[row]` at every cell: a distance, or a log-prior.

    x, xy_x: [B, H, Q, columns]; y, xy_y: [B, H, Q, rows]; xy_* are None where there is no product term. Cells are
    numbered row by row. A log-prior is float32, and its x and y are -inf on padding; its product term is finite there.
    """

    x: Tensor
    y: Tensor
    xy_x: Tensor | None = None
    xy_y: Tensor | None = None

    def dense(self) -> Tensor:
        """The same as one tensor [B, H, Q, rows * columns]."""
        values = self.x[..., None, :] + self.y[..., :, None]
        if self.xy_x is not None and self.xy_y is not None:
            values.addcmul_(self.xy_x[..., None, :], self.xy_y[..., :, None])
        return values.flatten(-2)
