"""The focal loss in few operations against torchvision's: the same bits, whatever the logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from fovea_detr.loss.focal import ALPHA, focal_loss

SHAPE = (3, 2, 40, 11)  # layers, images, queries, classes


def plainly(logits: Tensor, positives: tuple[Tensor, ...]) -> Tensor:
    is_class = torch.zeros_like(logits)
    is_class[positives] = 1
    return sigmoid_focal_loss(logits, is_class, alpha=ALPHA, gamma=2).sum((1, 2, 3))


def places(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`count` different places in SHAPE."""
    chosen = torch.randperm(3 * 2 * 40 * 11, generator=torch.Generator().manual_seed(count))[:count]
    layer, image, query, label = torch.unravel_index(chosen, SHAPE)
    return layer, image, query, label


@pytest.mark.parametrize("count", [0, 1, 60, 3 * 2 * 40 * 11])
@pytest.mark.parametrize("spread", [1.0, 8.0, 60.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_and_gradients_are_torchvisions(count: int, spread: float, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(1)
    logits = (torch.randn(SHAPE, generator=draw, dtype=dtype) * spread - 2).requires_grad_()
    weights, found = torch.rand(3, generator=draw, dtype=dtype), []
    for loss in (focal_loss, plainly):
        values = loss(logits, places(count))
        (gradient,) = torch.autograd.grad((values * weights).sum(), logits)
        found.append((values.detach(), gradient))
    (ours, our_gradient), (theirs, their_gradient) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("logit", [-2000.0, -90.0, 0.0, 90.0, 2000.0])
@pytest.mark.parametrize("is_positive", [False, True])
def test_extreme_logits_stay_finite(logit: float, is_positive: bool) -> None:
    logits = torch.full(SHAPE, logit, requires_grad=True)
    values = focal_loss(logits, places(7 if is_positive else 0))
    values.sum().backward()
    assert values.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_gradients_are_those_of_differences() -> None:
    logits = torch.randn(1, 1, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    positives = tuple(torch.tensor([x]) for x in (0, 0, 2, 1))
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, positives), logits)  # type: ignore[arg-type]
