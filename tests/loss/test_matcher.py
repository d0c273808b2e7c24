"""Matching against a loop over pairs, and against trying every assignment."""

from __future__ import annotations

import pytest
import torch

from fovea_detr.errors import NonFiniteError
from fovea_detr.loss.matcher import Matcher, pad_targets
from fovea_detr.types import Predictions, Target
from tests import reference
from tests.predictions import random_predictions, random_targets

LOSSES = pytest.mark.parametrize("loss", ["focal", "softmax"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
COSTS = {"classification": 2.0, "l1": 5.0, "giou": 2.0}


def matcher(loss: str) -> Matcher:
    return Matcher(COSTS["classification"], COSTS["l1"], COSTS["giou"], loss)


@LOSSES
@DTYPES
def test_costs_by_pair(loss: str, dtype: torch.dtype) -> None:
    """In float32 whatever the predictions are: also a float64 loop agrees to float32 noise only."""
    predictions, targets = random_predictions(2, 3, 5, loss=loss, dtype=dtype), random_targets(3, 0, 4)
    costs = matcher(loss).costs(predictions, *pad_targets(targets))
    assert costs.shape == (2, 3, 5, 4)
    assert costs.dtype == torch.float32
    for layer in range(2):
        for image, target in enumerate(targets):
            logits, boxes = predictions.logits[layer, image], predictions.boxes_cxcywh[layer, image]
            expected = reference.match_costs(logits, boxes, target, COSTS, loss)
            ours = costs[layer, image, :, : len(target)]
            assert torch.allclose(ours.to(dtype), expected, rtol=1e-5, atol=1e-5)


@LOSSES
@pytest.mark.parametrize("counts", [(3, 1, 0), (5, 5, 2), (7, 0, 6), (0, 0, 0)], ids=str)
def test_matches_are_the_cheapest(loss: str, counts: tuple[int, ...]) -> None:
    """5 queries: fewer objects, as many, more, and none at all."""
    predictions, targets = random_predictions(2, 3, 5, loss=loss), random_targets(*counts)
    matches = matcher(loss)(predictions, targets)
    assert len(matches) == 2
    for layer, images in enumerate(matches):
        for image, (queries, objects) in enumerate(images):
            logits, boxes = predictions.logits[layer, image], predictions.boxes_cxcywh[layer, image]
            cost = reference.match_costs(logits, boxes, targets[image], COSTS, loss)
            assert queries.dtype == objects.dtype == torch.int64
            pairs = list(zip(queries.tolist(), objects.tolist(), strict=True))
            assert pairs == reference.cheapest_pairs(cost)


def test_a_perfect_prediction_is_matched_to_its_object() -> None:
    targets = random_targets(3)
    logits = torch.full((1, 1, 5, 4), -5.0)
    boxes = random_predictions(1, 1, 5, seed=9).boxes_cxcywh.detach().clone()
    for object_, query in enumerate((4, 0, 2)):
        logits[0, 0, query, targets[0].labels[object_]] = 5.0
        boxes[0, 0, query] = targets[0].boxes_cxcywh[object_]
    ((queries, objects),) = matcher("focal")(Predictions(logits, boxes), targets)[0]
    assert queries.tolist() == [0, 2, 4]
    assert objects.tolist() == [1, 2, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("what", ["logits", "boxes_cxcywh"])
def test_broken_predictions_name_their_image(what: str, bad: float) -> None:
    predictions = random_predictions(2, 3, 5, loss="softmax")
    with torch.no_grad():
        getattr(predictions, what)[1, 2, 0] = bad
    with pytest.raises(NonFiniteError, match="image 2 of the batch") as caught:
        matcher("softmax")(predictions, random_targets(1, 0, 2))
    assert "\n" not in str(caught.value)


def test_padded_columns_are_no_objects() -> None:
    targets = [*random_targets(3), Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))]
    labels, boxes = pad_targets(targets)
    assert labels.shape == (2, 3)
    assert boxes.shape == (2, 3, 4)
    assert not boxes[1].any()
