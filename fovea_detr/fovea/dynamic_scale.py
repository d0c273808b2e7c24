"""Axis `dynamic_scale`: how a query's distance to a cell is scaled. A new value is one class here and one yaml.

Formulas: section "dynamic scale" of the SMCA code base (Gao et al., "Fast Convergence of DETR with Spatially Modulated
Co-Attention", 2021); s are linear in the layer's normalised input, one set per head, and start at 1, so that types 1
to 3 begin equal. All distances are in feature cells.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from torch import Tensor, nn


class Distance(NamedTuple):
    """A distance to every cell, separable: `x[..., column] + y[..., row] + xy_x[..., column] * xy_y[..., row]`.

    x, xy_x: [B, H, Q, columns]; y, xy_y: [B, H, Q, rows]; xy_* are None where there is no product term.
    """

    x: Tensor
    y: Tensor
    xy_x: Tensor | None = None
    xy_y: Tensor | None = None


class DynamicScale(nn.Module):
    """Base of the axis. `scales_per_head` learned scales s = Linear(z), weight 0 and bias 1 at the start."""

    scales_per_head: ClassVar[int]

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = nn.Linear(hidden, heads * self.scales_per_head) if self.scales_per_head else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.scale is not None:
            nn.init.zeros_(self.scale.weight)
            nn.init.ones_(self.scale.bias)

    def squared_scales(self, z: Tensor) -> list[Tensor]:
        """z [B, Q, D] -> one [B, H, Q, 1] tensor of s^2 for each scale of a head."""
        assert self.scale is not None
        s = self.scale(z).unflatten(-1, (self.heads, self.scales_per_head))  # [B, Q, H, n]
        s2 = s.clamp(-1e19, 1e19).square()  # finite: a head that feels no prior has gradient 0 x s^2, never 0 x inf
        return [part.transpose(1, 2) for part in s2.split(1, dim=-1)]

    def forward(self, z: Tensor, dx2: Tensor, dy2: Tensor) -> Distance:
        """z [B, Q, D]; dx2 [B, H, Q, columns] and dy2 [B, H, Q, rows], squared offsets in cells -> Distance."""
        raise NotImplementedError


class Type1(DynamicScale):
    """distance = dx2 + dy2: a fixed width."""

    scales_per_head = 0

    def forward(self, z: Tensor, dx2: Tensor, dy2: Tensor) -> Distance:  # noqa: ARG002 - the axis' signature
        return Distance(dx2, dy2)


class Type2(DynamicScale):
    """distance = s^2 (dx2 + dy2): one width per query and head."""

    scales_per_head = 1

    def forward(self, z: Tensor, dx2: Tensor, dy2: Tensor) -> Distance:
        (s2,) = self.squared_scales(z)
        return Distance(s2 * dx2, s2 * dy2)


class Type3(DynamicScale):
    """distance = sx^2 dx2 + sy^2 dy2: independent widths in x and y; single-scale SMCA."""

    scales_per_head = 2

    def forward(self, z: Tensor, dx2: Tensor, dy2: Tensor) -> Distance:
        sx2, sy2 = self.squared_scales(z)
        return Distance(sx2 * dx2, sy2 * dy2)


class Type4(DynamicScale):
    """distance = s1^2 dx2 + s2^2 dy2 + s3^2 dx2 dy2.

    Published under the name "covariance"; the last term is a quartic in the offset, not a covariance.
    """

    scales_per_head = 3

    def forward(self, z: Tensor, dx2: Tensor, dy2: Tensor) -> Distance:
        s1, s2, s3 = self.squared_scales(z)
        return Distance(s1 * dx2, s2 * dy2, s3 * dx2, dy2)
