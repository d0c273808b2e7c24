"""Axis `kernel`: the shape of the prior around its centre. A new value is one class here and one yaml.

A kernel has an elementwise `magnitude`, which a dynamic scale applies to its scales and to its offsets, and a divisor:
log_prior = -distance / divisor, with the distance a sum of products of magnitudes.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor


class Gaussian:
    """kernel=gaussian: log_prior = -distance / smooth, the distance in squares of offsets. As published."""

    per_axis: ClassVar[bool] = False  # True: only for dynamic scales without a product term

    def magnitude(self, x: Tensor) -> Tensor:
        """Scales or offsets of any shape -> their elementwise magnitude, >= 0."""
        return x.square()

    def divisor(self, smooth: float) -> float:
        """smooth in squared cells -> what the distance is divided by."""
        return smooth


class Laplace(Gaussian):
    """kernel=laplace: log_prior = -(sx |dx| + sy |dy|) / sqrt(smooth), per axis. Not published; introduced here.

    The root of a sum, sqrt(dx^2 + dy^2), separates for no dynamic scale. The gradient of |x| at 0 is 0.
    """

    per_axis = True

    def magnitude(self, x: Tensor) -> Tensor:
        return x.abs()

    def divisor(self, smooth: float) -> float:
        return math.sqrt(smooth)
