"""Requirements on a GPU: equal results, one sync per step, twice the images/s, no recompilation."""

from __future__ import annotations

import pytest
import torch

from benchmarks import core, gpu, step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch sees none here")


@pytest.mark.parametrize("kind", list(core.TYPES))
def test_both_sides_of_the_attention_compute_the_same(kind: str) -> None:
    case = core.build(kind, device="cuda")
    with torch.no_grad():
        torch.testing.assert_close(case.core_ours(), case.core_plain(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(case.layer_ours(), case.layer_plain(), rtol=1e-3, atol=1e-4)


def test_one_sync_a_step() -> None:
    sides = step.Sides([*step.TINY, "device=cuda"], (128, 128), 4, "cuda")
    for _ in range(3):
        sides.ours()
    assert gpu.syncs(sides.ours) <= 1


@pytest.mark.slow
def test_twice_the_images_of_the_plain_twin() -> None:
    sides = step.Sides(gpu.BF16, gpu.SIZE_HW, gpu.BATCH, "cuda")
    (row,) = gpu.throughput_rows(sides, runs=3)
    assert row["ratio"] >= 2.0


@pytest.mark.slow
def test_nothing_is_compiled_again_after_the_warm_up() -> None:
    (row,) = gpu.compile_rows(gpu.BF16, gpu.BATCH, "cuda")
    assert row["ours"] == 0
