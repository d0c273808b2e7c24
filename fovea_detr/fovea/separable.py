"""The log-prior in the separable form in which it travels from the fovea to the attention."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LogPrior(NamedTuple):
    """What is added to a query's attention scores, `x[column] + y[row] + xy_x[column] * xy_y[row]` at every cell.

    x, xy_x: [B, H, Q, columns]; y, xy_y: [B, H, Q, rows]; float32. x and y are -inf on padding; xy_* are None where
    there is no product term (types 1 to 3). Cells are numbered row by row.
    """

    x: Tensor
    y: Tensor
    xy_x: Tensor | None = None
    xy_y: Tensor | None = None

    def dense(self) -> Tensor:
        """The same as one tensor [B, H, Q, rows * columns], never above 0 and -inf on padding."""
        values = self.x[..., None, :] + self.y[..., :, None]
        if self.xy_x is not None and self.xy_y is not None:
            values.addcmul_(self.xy_x[..., None, :], self.xy_y[..., :, None])
        return values.flatten(-2)
