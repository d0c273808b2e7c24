"""Class error and cardinality error against the published formulas, image by image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fovea_detr.loss.criterion import Criterion
from fovea_detr.loss.matcher import Match, Matcher
from fovea_detr.loss.measures import measures
from fovea_detr.types import Predictions, Target
from tests.predictions import random_predictions, random_targets


def published(predictions: Predictions, targets: list[Target], matches: list[Match]) -> dict[str, float]:
    """DETR's `accuracy` and `loss_cardinality` in loops."""
    right, count, errors = 0, 0, []
    for image, (target, (queries, objects)) in enumerate(zip(targets, matches, strict=True)):
        scores = predictions.logits[-1, image].tolist()
        for query, thing in zip(queries.tolist(), objects.tolist(), strict=True):
            right += scores[query].index(max(scores[query])) == int(target.labels[thing])
            count += 1
        found = sum(one.index(max(one)) != len(one) - 1 for one in scores)
        errors.append(abs(found - len(target)))
    return {
        "class_error": 100 - 100 * right / count if count else 100.0,
        "cardinality_error": sum(errors) / len(errors),
    }


def random_matches(targets: list[Target], queries: int) -> list[Match]:
    draw = torch.Generator().manual_seed(3)

    def match(count: int) -> tuple[Tensor, Tensor]:
        number = min(count, queries)
        return torch.randperm(queries, generator=draw)[:number].sort().values, torch.randperm(count)[:number]

    return [match(len(target)) for target in targets]


@pytest.mark.parametrize("counts", [(3, 0, 5), (1,), (0, 0), (9, 2)], ids=str)
@pytest.mark.parametrize("loss", ["focal", "softmax"])
def test_they_equal_the_published_ones(counts: tuple[int, ...], loss: str) -> None:
    predictions, targets = random_predictions(2, len(counts), 7, loss=loss), random_targets(*counts)
    matches = random_matches(targets, 7)
    images = torch.tensor([b for b, (queries, _) in enumerate(matches) for _ in queries], dtype=torch.int64)
    queries = torch.cat([queries for queries, _ in matches])
    labels = torch.cat([target.labels[objects] for target, (_, objects) in zip(targets, matches, strict=True)])
    measured = measures(predictions.logits[-1], images, queries, labels, torch.tensor(counts))
    found = {name: value.item() for name, value in measured.items()}
    assert found == pytest.approx(published(predictions, targets, matches), abs=1e-4)


@pytest.mark.parametrize("counts", [(3, 0, 5), (0, 0), (9, 2)], ids=str)
def test_the_criterion_measures_its_last_layer(counts: tuple[int, ...]) -> None:
    predictions, targets = random_predictions(3, len(counts), 7), random_targets(*counts)
    weights = {"classification": 2.0, "l1": 5.0, "giou": 2.0}
    criterion = Criterion(
        Matcher(2.0, 5.0, 2.0, "focal"), weights, loss="focal", class_outputs=predictions.logits.shape[-1]
    )
    losses = criterion(predictions, targets)
    found = {name: value.item() for name, value in losses.measures.items()}
    assert found == pytest.approx(published(predictions, targets, losses.matches[-1]), abs=1e-4)
