"""The set loss against a loop over layers, images, queries and classes: values, matches and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fovea_detr.build import build_criterion
from fovea_detr.errors import NonFiniteError
from fovea_detr.loss.criterion import Criterion
from fovea_detr.loss.matcher import Matcher
from tests import reference
from tests.model.builders import random_batch, small_config, small_model
from tests.predictions import CLASSES, random_predictions, random_targets

LOSSES = pytest.mark.parametrize("loss", ["focal", "softmax"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
COUNTS = pytest.mark.parametrize("counts", [(3, 2), (0, 4), (0, 0), (7, 1)], ids=str)
WEIGHTS = {"classification": 2.0, "l1": 5.0, "giou": 3.0}
COSTS = {"classification": 1.0, "l1": 4.0, "giou": 2.0}


def criterion(loss: str) -> Criterion:
    return Criterion(Matcher(**COSTS, loss=loss), WEIGHTS, loss=loss, class_outputs=CLASSES)


@LOSSES
@DTYPES
@COUNTS
def test_values_matches_and_gradients(loss: str, dtype: torch.dtype, counts: tuple[int, ...]) -> None:
    """5 queries: images without objects, a whole batch without, and more objects than queries."""
    predictions, targets = random_predictions(2, 2, 5, loss=loss, dtype=dtype), random_targets(*counts)
    ours = criterion(loss)(predictions, targets)
    by_layer, total, pairs = reference.losses(predictions, targets, WEIGHTS, COSTS, loss)
    assert ours.total.item() == pytest.approx(total.item(), rel=1e-5)
    for part, values in by_layer.items():
        assert ours.by_layer[part].tolist() == pytest.approx(values.tolist(), rel=1e-5)
    matched = [[list(zip(q.tolist(), t.tolist(), strict=True)) for q, t in layer] for layer in ours.matches]
    assert matched == pairs
    leaves = [predictions.logits, predictions.boxes_cxcywh]
    expected = torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True)
    for mine, other in zip(torch.autograd.grad(ours.total, leaves), expected, strict=True):
        other = torch.zeros_like(mine) if other is None else other
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-5)


@LOSSES
def test_the_total_is_the_weighted_sum_of_the_parts(loss: str) -> None:
    found = criterion(loss)(random_predictions(3, 2, 5, loss=loss), random_targets(3, 0))
    assert set(found.by_layer) == set(WEIGHTS)
    assert found.total.item() == pytest.approx(sum(WEIGHTS[k] * v.sum().item() for k, v in found.by_layer.items()))


def test_detrs_dicts_are_accepted() -> None:
    predictions, targets = random_predictions(2, 2, 5), random_targets(3, 0)
    dicts = [{"labels": t.labels, "boxes": t.boxes_cxcywh, "area": torch.zeros(len(t))} for t in targets]
    assert torch.equal(criterion("focal")(predictions, dicts).total, criterion("focal")(predictions, targets).total)


@pytest.mark.parametrize("overrides", [[], ["model.fovea=false", "model.loss=softmax"]], ids=["fovea", "detr"])
def test_a_batch_without_objects_still_trains_every_parameter(overrides: list[str]) -> None:
    """DDP waits for the gradient of every parameter; those of the box head are zeros, not missing."""
    model = small_model(*overrides).train()
    found = build_criterion(small_config(*overrides))(model(random_batch((64, 64), (48, 64))), random_targets(0, 0))
    found.total.backward()
    assert not found.by_layer["l1"].any()
    assert not found.by_layer["giou"].any()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert not any(p.grad.any() for p in model.box_head.parameters() if p.grad is not None)


@LOSSES
def test_losses_are_float32_for_bfloat16_predictions(loss: str) -> None:
    found = criterion(loss)(random_predictions(1, 2, 5, loss=loss, dtype=torch.bfloat16), random_targets(3, 1))
    assert found.total.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in found.by_layer.values())


@LOSSES
def test_extreme_logits_stay_finite(loss: str) -> None:
    predictions = random_predictions(1, 1, 5, loss=loss)
    with torch.no_grad():
        predictions.logits.mul_(1e4)
    found = criterion(loss)(predictions, random_targets(3))
    gradients: tuple[Tensor, ...] = torch.autograd.grad(found.total, [predictions.logits, predictions.boxes_cxcywh])
    assert found.total.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_not_a_number_is_refused() -> None:
    predictions = random_predictions(2, 2, 5)
    with torch.no_grad():
        predictions.logits[0, 1, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="image 1 of the batch"):
        criterion("focal")(predictions, random_targets(1, 2))


def test_not_a_number_in_an_image_without_objects_shows_in_the_total() -> None:
    """Nothing is matched there, so the matcher cannot see it; the loss does."""
    predictions = random_predictions(1, 2, 5)
    with torch.no_grad():
        predictions.logits[0, 1, 3] = float("nan")
    assert not criterion("focal")(predictions, random_targets(1, 0)).total.isfinite()


def test_build_criterion_takes_the_configurations_weights() -> None:
    built = build_criterion(small_config("model.loss_weights.l1=7", "model.match_costs.giou=3"))
    assert built.weights == {"classification": 2.0, "l1": 7.0, "giou": 2.0}
    assert (built.matcher.classification, built.matcher.l1, built.matcher.giou) == (2.0, 5.0, 3.0)
    assert built.class_weights.tolist() == [1.0] * 5 + [pytest.approx(0.1)]
    assert not built.state_dict()
