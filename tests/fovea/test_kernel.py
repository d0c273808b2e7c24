"""The axis' values one by one: their formulas, the gradient at the centre, and the refused combinations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fovea_detr.errors import ConfigError
from fovea_detr.fovea.dynamic_scale import DynamicScale, Type3
from fovea_detr.fovea.kernel import Gaussian, Laplace
from fovea_detr.fovea.prior import CellGrid, FoveaPrior
from fovea_detr.fovea.separable import Separable
from tests.fovea.priors import TYPES, Setting


class Type6(DynamicScale):
    """A dynamic scale with a product term whose author did not think of kernels."""

    scales_per_head = 0

    def forward(self, z: Tensor, dx: Tensor, dy: Tensor) -> Separable:  # noqa: ARG002
        return Separable(dx, dy, dx, dy)


class Type7(Type6):
    """The same, with a false declaration."""

    per_axis = True


def prior_at(centre: tuple[float, float], dynamic_scale: DynamicScale, smooth: float = 4.0) -> tuple[Tensor, Tensor]:
    """-> the log-prior [rows, columns] of one head and query, and its centre [1, 1, 1, 2]."""
    prior = FoveaPrior(4, 1, dynamic_scale, smooth, reference=None)
    centres = torch.tensor(centre).view(1, 1, 1, 2).requires_grad_()
    return prior.log_prior(torch.zeros(1, 1, 4), centres, CellGrid(3, 5, 32)).dense().view(3, 5), centres


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, -2.0)])
def test_formulas(scales: tuple[float, float]) -> None:
    for kernel in (Gaussian(), Laplace()):
        scale = Type3(4, 1, kernel)
        assert scale.scale is not None
        scale.scale.bias.data = torch.tensor(scales)
        log_prior, _ = prior_at((1.25, 0.5), scale)
        for row in range(3):
            for column in range(5):
                dx, dy, (sx, sy) = 1.25 - column, 0.5 - row, scales
                gaussian = -(sx**2 * dx**2 + sy**2 * dy**2) / 4.0
                laplace = -(abs(sx) * abs(dx) + abs(sy) * abs(dy)) / 2.0
                expected = laplace if isinstance(kernel, Laplace) else gaussian
                assert log_prior[row, column].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_the_gradient_on_a_cells_own_place_and_at_a_scale_of_0_is_finite(scale: float) -> None:
    dynamic = Type3(4, 1, Laplace())
    assert dynamic.scale is not None
    nn.init.constant_(dynamic.scale.bias, scale)
    log_prior, centres = prior_at((2.0, 1.0), dynamic)
    log_prior.sum().backward()  # the pulls of left and right cells, and of upper and lower ones, cancel
    assert centres.grad is not None
    assert torch.equal(centres.grad, torch.zeros_like(centres))
    assert dynamic.scale.bias.grad is not None
    assert dynamic.scale.bias.grad.isfinite().all()
    assert scale != 0 or torch.equal(dynamic.scale.bias.grad, torch.zeros(2))


@pytest.mark.parametrize("cls", [Type6, *(cls for cls in TYPES.values() if not cls.per_axis)])
def test_a_dynamic_scale_that_is_not_per_axis_is_refused_when_it_is_built(cls: type[DynamicScale]) -> None:
    with pytest.raises(ConfigError, match=rf"^dynamic_scale {cls.__name__} is not per axis.* kernel Laplace .*$"):
        cls(8, 2, Laplace())


def test_a_product_term_under_a_false_declaration_fails_at_the_first_pass() -> None:
    setting = Setting(dtype=torch.float32)
    prior = setting.build()
    prior.dynamic_scale = Type7(setting.hidden, setting.heads, Laplace())
    with pytest.raises(AssertionError, match="no product term"):
        prior(*setting.inputs(), setting.grid)
