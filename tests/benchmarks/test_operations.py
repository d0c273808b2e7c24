"""The operations of a training step, by part, against the stored counts: none may grow unnoticed."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from benchmarks.operations import PARTS, PRECISIONS, RECORDED, ByPart, count, recorded

IS_RECORDED_WITH = torch.__version__.split("+")[0] == recorded()["torch"]


@pytest.mark.skipif(not IS_RECORDED_WITH, reason="another version of torch dispatches other operations")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_part_of_a_step_grows(precision: str) -> None:
    stored = recorded()[precision]
    grown = {
        f"{part}: {name}": f"{stored[part][name]} -> {value}"
        for part, found in count([f"precision={precision}"]).items()
        for name, value in asdict(found).items()
        if value > stored[part][name]
    }
    assert not grown, f"if that is wanted: python -m benchmarks.operations --record, which writes {RECORDED}"


def test_operations_are_counted_by_part_and_kind() -> None:
    x = torch.ones(2, 3)
    with ByPart() as mode:
        mode.of("model", lambda: (x + 1).view(3, 2))()
        mode.of("backward", lambda: mode.of("criterion", lambda: x.to(torch.bfloat16))())()
        x.add_(1)
    found = {part: tuple(asdict(mode.counts[part]).values()) for part in PARTS}
    expected = {"model": (1, 1, 0, 1), "criterion": (1, 0, 1, 1), "rest": (1, 0, 0, 0)}
    assert found == {part: expected.get(part, (0, 0, 0, 0)) for part in PARTS}


def test_every_part_of_a_step_is_counted() -> None:
    counts = count(["model=fovea_tiny", "model.num_queries=3", "data.num_classes=5"])
    assert all(one.kernels > 0 for one in counts.values())
