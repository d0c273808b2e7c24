"""Axis `dynamic_scale`: how a query's distance to a cell is scaled. A new value is one class here and one yaml.

Types 1 to 4: section "dynamic scale" of the SMCA code base (Gao et al., "Fast Convergence of DETR with Spatially
Modulated Co-Attention", 2021). Scales are linear in the layer's normalised input, one set per head. Types 1, 2, 3 and 5
are equal at initialisation. Offsets and distances are in feature cells.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fovea_detr.errors import ConfigError
from fovea_detr.fovea.kernel import Gaussian
from fovea_detr.fovea.separable import Separable

# Bounds that keep every intermediate value finite in float32, so that no gradient is 0 x inf and no sum inf - inf.
LARGEST_SCALE = 1e19  # its square is finite
LARGEST_LOG_FACTOR = 5.0  # type5: diagonal factors in 0.0067..148
LARGEST_TILT = 16.0  # type5: correlation within +-0.998
LARGEST_OFFSET = 1e6  # type5: cells


class DynamicScale(nn.Module):
    """Base of the axis: `scales_per_head` learned values Linear(z), with weight 0 and bias `start` at initialisation.

    per_axis: the distance is `magnitude(sx) magnitude(dx) + magnitude(sy) magnitude(dy)` with the kernel's magnitude,
    without a product term. Raises ConfigError for a kernel that is per_axis where the dynamic scale is not.
    """

    scales_per_head: ClassVar[int]
    start: ClassVar[float] = 1.0
    per_axis: ClassVar[bool] = False

    def __init__(self, hidden: int, heads: int, kernel: Gaussian | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.kernel = kernel or Gaussian()
        if self.kernel.per_axis and not self.per_axis:
            names = type(self).__name__, type(self.kernel).__name__
            raise ConfigError("dynamic_scale {} is not per axis, which kernel {} requires: change one".format(*names))
        self.scale = nn.Linear(hidden, heads * self.scales_per_head) if self.scales_per_head else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.scale is not None:
            nn.init.zeros_(self.scale.weight)
            nn.init.constant_(self.scale.bias, self.start)

    def learned(self, z: Tensor) -> Tensor:
        """z [B, Q, D] -> [B, Q, H, scales_per_head]."""
        assert self.scale is not None
        return self.scale(z.flatten(0, 1)).view(*z.shape[:2], self.heads, self.scales_per_head)

    def magnitudes(self, z: Tensor) -> list[Tensor]:
        """z [B, Q, D] -> the kernel's magnitude of each scale, [B, H, Q, 1] each."""
        bounded = functional.hardtanh(self.learned(z), -LARGEST_SCALE, LARGEST_SCALE)  # clamp, in fewer operations
        return _split(self.kernel.magnitude(bounded))

    def forward(self, z: Tensor, dx: Tensor, dy: Tensor) -> Separable:
        """z [B, Q, D]; dx [B, H, Q, columns] and dy [B, H, Q, rows], centre minus cell, signed -> the distance."""
        raise NotImplementedError


class Type1(DynamicScale):
    """distance = dx^2 + dy^2: a fixed width."""

    scales_per_head = 0
    per_axis = True

    def forward(self, z: Tensor, dx: Tensor, dy: Tensor) -> Separable:  # noqa: ARG002 - the axis' signature
        return Separable(self.kernel.magnitude(dx), self.kernel.magnitude(dy))


class Type2(DynamicScale):
    """distance = s^2 (dx^2 + dy^2): one width per query and head."""

    scales_per_head = 1
    per_axis = True

    def forward(self, z: Tensor, dx: Tensor, dy: Tensor) -> Separable:
        (s,) = self.magnitudes(z)
        return Separable(s * self.kernel.magnitude(dx), s * self.kernel.magnitude(dy))


class Type3(DynamicScale):
    """distance = sx^2 dx^2 + sy^2 dy^2: independent widths in x and y; single-scale SMCA."""

    scales_per_head = 2
    per_axis = True

    def forward(self, z: Tensor, dx: Tensor, dy: Tensor) -> Separable:
        sx, sy = self.magnitudes(z)
        return Separable(sx * self.kernel.magnitude(dx), sy * self.kernel.magnitude(dy))


class Type4(DynamicScale):
    """distance = s1^2 dx^2 + s2^2 dy^2 + s3^2 dx^2 dy^2.

    Published under the name "covariance"; the last term is a quartic in the offset, not a covariance (that is type5).
    """

    scales_per_head = 3

    def forward(self, z: Tensor, dx: Tensor, dy: Tensor) -> Separable:
        s1, s2, s3 = self.magnitudes(z)
        dx2, dy2 = self.kernel.magnitude(dx), self.kernel.magnitude(dy)
        return Separable(s1 * dx2, s2 * dy2, s3 * dx2, dy2)


class Type5(DynamicScale):
    """distance = a dx^2 + 2 b dx dy + c dy^2: a true precision matrix, tilted at any angle. Ours, never published.

    [[a, b], [b, c]] = L L^T with the Cholesky factor L = [[l11, 0], [l21, l22]] of three learned u, v, w:
    l11 = exp(u), l22 = exp(w), l21 = v l22; so a = l11^2, b = l11 l21, c = l21^2 + l22^2, and b / sqrt(a c) =
    v / sqrt(1 + v^2). u, v, w start at 0 (the identity: type1) and pass through `limit tanh(. / limit)`; offsets are
    clamped. Hence every term is finite whatever the weights, and the distance is at least 0.0019 (a dx^2 + c dy^2), a
    thousand times its rounding error: in float32 the sum of its parts is never below 0, except among denormal numbers.
    """

    scales_per_head = 3
    start = 0.0

    def forward(self, z: Tensor, dx: Tensor, dy: Tensor) -> Separable:
        u, v, w = _split(self.learned(z))
        l11, l22 = (_bounded(log, LARGEST_LOG_FACTOR).exp() for log in (u, w))
        l21 = _bounded(v, LARGEST_TILT) * l22
        a, b, c = l11.square(), l11 * l21, l21.square() + l22.square()
        dx, dy = (offset.clamp(-LARGEST_OFFSET, LARGEST_OFFSET) for offset in (dx, dy))
        return Separable(a * dx.square(), c * dy.square(), 2 * b * dx, dy)


def _split(s: Tensor) -> list[Tensor]:
    """[B, Q, H, n] -> n tensors [B, H, Q, 1]."""
    return [part.transpose(1, 2) for part in s.split(1, dim=-1)]


def _bounded(x: Tensor, limit: float) -> Tensor:
    """A smooth bound: x near 0, +-limit far away; never NaN for an infinite x."""
    return limit * torch.tanh(x / limit)
