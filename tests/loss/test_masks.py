"""Dice and mask focal loss: published values, the obvious formula, images without objects, targets without masks."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fovea_detr.errors import DataError
from fovea_detr.loss.criterion import mean_objects
from fovea_detr.loss.masks import mask_losses
from fovea_detr.types import Predictions, Target

GOLDEN = sorted((Path(__file__).parent.parent / "golden" / "masks").glob("loss_*.npz"))
CLASSES = 91


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def stored(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {**np.load(request.param), "tag": request.param.stem.removeprefix("loss_")}


def rng(text: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(text.encode()))


def drawn_masks(tag: str, batch: int, queries: int, size_hw: tuple[int, int]) -> Tensor:
    """The masks of the rule in which all files of this kind are drawn; logits and boxes come first in its stream."""
    r, (height, width) = rng(tag), size_hw
    r.standard_normal((batch, queries, CLASSES + 1))
    for low, high in ((0.2, 0.8), (0.05, 0.4)):
        r.uniform(low, high, (batch, queries, 2))
    c, s = r.uniform(0, 1, (batch, queries, 2)), r.uniform(0.05, 0.5, (batch, queries, 2))
    x = ((np.arange(width) + 0.5) / width - c[..., 0, None]) / s[..., 0, None]
    y = ((np.arange(height) + 0.5) / height - c[..., 1, None]) / s[..., 1, None]
    field = 4 - x[..., None, :] ** 2 - y[..., :, None] ** 2
    masks = np.maximum(field, -12) + r.standard_normal((batch, queries, height, width))
    return torch.as_tensor(masks, dtype=torch.float32)


def drawn_targets(stored: dict[str, Any]) -> tuple[list[Target], list[tuple[Tensor, Tensor]]]:
    r, targets, matches = rng(f"{stored['tag']}/targets"), [], []
    for (height, width), n in zip(stored["sizes"].tolist(), stored["counts"].tolist(), strict=True):
        masks = torch.as_tensor(r.random((n, height, width)) < 0.3)
        labels = torch.as_tensor(r.integers(1, 91, n))
        queries = torch.as_tensor(np.sort(r.permutation(int(stored["queries"]))[:n]))
        matches.append((queries, torch.as_tensor(r.permutation(n))))
        targets.append(Target(labels, torch.full((n, 4), 0.5), masks))
    return targets, matches


def predictions_of(masks: Tensor) -> Predictions:
    batch, queries = masks.shape[:2]
    return Predictions(torch.zeros(1, batch, queries, 2), torch.zeros(1, batch, queries, 4), masks=masks)  # type: ignore[arg-type]


def test_all_files_are_here() -> None:
    assert len(GOLDEN) == 3


def test_published_losses_and_gradients(stored: dict[str, Any]) -> None:
    targets, matches = drawn_targets(stored)
    for image, (queries, objects) in enumerate(matches):
        assert queries.tolist() == stored[f"match{image}_pred"].tolist()
        assert objects.tolist() == stored[f"match{image}_target"].tolist()
    size = tuple(stored["size4"].tolist())
    masks = drawn_masks(stored["tag"], len(targets), int(stored["queries"]), size).requires_grad_()
    num_boxes = mean_objects([targets], masks.device)
    assert num_boxes.tolist() == [int(stored["num_boxes"])]
    losses = mask_losses(predictions_of(masks), targets, matches, num_boxes)
    for part in ("mask", "dice"):
        assert losses[part].tolist() == pytest.approx([float(stored[f"loss_{part}"])], rel=1e-6)
    (losses["mask"] + losses["dice"]).sum().backward()
    assert masks.grad is not None
    assert np.abs(masks.grad.numpy() - stored["grad_masks"]).max() < 1e-7


def obvious(x: float, t: float) -> float:
    p = 1 / (1 + np.exp(-x))
    right = p if t else 1 - p
    return (0.25 if t else 0.75) * (1 - right) ** 2 * -np.log(right)


def test_the_obvious_formula_pixel_by_pixel() -> None:
    masks = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = torch.rand(1, 10, 14, generator=torch.Generator().manual_seed(1)) < 0.4
    other = torch.zeros(0, 12, 15, dtype=torch.bool)  # without objects; the batch's common size counts
    targets = [Target(torch.zeros(1), torch.zeros(1, 4), own), Target(torch.zeros(0), torch.zeros(0, 4), other)]
    matches = [
        (torch.tensor([1]), torch.tensor([0])),
        (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)),
    ]
    found = mask_losses(predictions_of(masks.repeat(2, 1, 1, 1)), targets, matches, torch.tensor([3.0]))
    x = functional.interpolate(masks[:, 1:], (12, 15), mode="bilinear", align_corners=False)[0, 0].numpy()
    t = np.zeros((12, 15))
    t[:10, :14] = own[0].numpy()
    focal = np.mean([obvious(x[i, j], t[i, j]) for i in range(12) for j in range(15)])
    p = 1 / (1 + np.exp(-x))
    dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    assert found["mask"].item() == pytest.approx(focal / 3, rel=1e-6)
    assert found["dice"].item() == pytest.approx(dice / 3, rel=1e-6)


def test_a_batch_without_objects_has_no_loss_and_a_gradient_of_zero() -> None:
    masks = torch.randn(2, 3, 4, 5).requires_grad_()
    empty = Target(torch.zeros(0), torch.zeros(0, 4), torch.zeros(0, 16, 20, dtype=torch.bool))
    nothing = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    losses = mask_losses(predictions_of(masks), [empty] * 2, [nothing] * 2, torch.ones(1))
    assert {name: value.tolist() for name, value in losses.items()} == {"mask": [0.0], "dice": [0.0]}
    (losses["mask"] + losses["dice"]).sum().backward()
    assert masks.grad is not None
    assert not masks.grad.any()


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_masks_than_objects_is_refused(count: int) -> None:
    out = Predictions(torch.zeros(1, 1, 4, 2), torch.rand(1, 1, 4, 4), masks=torch.zeros(1, 4, 3, 3))
    target = Target(torch.zeros(2, dtype=torch.int64), torch.rand(2, 4), torch.ones(count, 12, 12, dtype=torch.bool))
    match = (torch.tensor([0, 1]), torch.tensor([0, 1]))
    with pytest.raises(DataError, match=rf"2 objects and {count} masks"):
        mask_losses(out, [target], [match], torch.ones(1))


def test_targets_without_masks_are_refused() -> None:
    target = Target(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 4))
    with pytest.raises(DataError, match="the targets have no masks"):
        mask_losses(
            predictions_of(torch.zeros(1, 1, 2, 2)),
            [target],
            [(torch.zeros(1).long(), torch.zeros(1).long())],
            torch.ones(1),
        )
