"""Box formats and generalised IoU, against corners written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision import ops

from fovea_detr.boxes import cxcywh_to_xyxy, generalised_iou, xyxy_to_cxcywh
from tests import reference
from tests.predictions import random_boxes

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-5}


def two_sets(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[6, 4] and [5, 4] xyxy."""
    draw = torch.Generator().manual_seed(0)
    first, second = (cxcywh_to_xyxy(random_boxes(n, draw=draw)).to(dtype) for n in (6, 5))
    return first.requires_grad_(), second.requires_grad_()


@DTYPES
def test_formats_and_back(dtype: torch.dtype) -> None:
    boxes = random_boxes(2, 3, draw=torch.Generator().manual_seed(0)).to(dtype)
    by_hand = torch.stack([torch.stack([reference.corners(box) for box in image]) for image in boxes])
    assert torch.allclose(cxcywh_to_xyxy(boxes), by_hand)
    assert torch.allclose(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes)


@DTYPES
def test_giou_of_all_pairs_with_gradients(dtype: torch.dtype) -> None:
    first, second = two_sets(dtype)
    ours = generalised_iou(first[:, None], second)
    theirs = torch.stack([torch.stack([reference.generalised_iou(a, b) for b in second]) for a in first])
    assert torch.allclose(ours, theirs, rtol=0, atol=RELATIVE[dtype])
    weights = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    gradients = [torch.autograd.grad((giou * weights).sum(), [first, second]) for giou in (ours, theirs)]
    for mine, other in zip(*gradients, strict=True):
        assert torch.allclose(mine, other, rtol=10 * RELATIVE[dtype], atol=10 * RELATIVE[dtype])


def test_giou_equals_torchvision() -> None:
    first, second = two_sets(torch.float64)
    expected = ops.generalized_box_iou(first, second)
    assert torch.allclose(generalised_iou(first[:, None], second), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 1, 1), (0, 0, 1, 1), 1.0),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0.0),  # side by side: the hull is their union
        ((0, 0, 1, 1), (3, 0, 4, 1), -0.5),
        ((0, 0, 2, 2), (0, 0, 1, 1), 0.25),
        ((0, 0, 1, 1), (0.5, 0.5, 0.5, 0.5), 0.0),  # a point inside a box
    ],
)
def test_giou_by_hand(a: tuple[float, ...], b: tuple[float, ...], expected: float) -> None:
    one, other = torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)
    assert generalised_iou(one, other).item() == pytest.approx(expected)
    assert generalised_iou(other, one).item() == pytest.approx(expected)


def test_boxes_without_area_are_finite() -> None:
    point = torch.full((4,), 0.5, requires_grad=True)
    giou = generalised_iou(point, torch.full((4,), 0.5))
    giou.backward()
    assert giou.item() == 0
    assert point.grad is not None
    assert point.grad.isfinite().all()
