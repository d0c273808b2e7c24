"""Which images make up a batch: the same for any number of ranks, nothing lost, and of like shape where asked."""

from __future__ import annotations

from itertools import chain, pairwise

import numpy as np
import pytest
from torch.utils.data import BatchSampler, SequentialSampler

from fovea_detr.data.batches import epoch_batches, eval_batches
from fovea_detr.errors import DataError

RATIOS = [(0.5, 0.75, 1.0, 4 / 3, 1.5)[(7 * index) % 5] for index in range(203)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_the_same_global_batches(world_size: int) -> None:
    ranks = [epoch_batches(40, 6 // world_size, world_size, rank, seed=3, epoch=2) for rank in range(world_size)]
    assert [len(batches) for batches in ranks] == [6] * world_size
    alone = epoch_batches(40, 6, 1, 0, seed=3, epoch=2)
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == alone
    seen = list(chain(*alone))
    assert len(seen) == len(set(seen)) == 36
    assert set(seen) <= set(range(40))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    orders = [epoch_batches(40, 40, 1, 0, seed, epoch)[0] for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == epoch_batches(40, 40, 1, 0, 0, 0)[0] != list(range(40))


def test_too_few_images_for_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match=r"^7 training images do not fill one batch of 8 \(4 processes x 2 images\)"):
        epoch_batches(7, 2, 4, 0, 0, 0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_drops_and_repeats_nothing(world_size: int) -> None:
    ids = np.arange(11)
    ranks = [eval_batches(ids, 3, world_size, rank) for rank in range(world_size)]
    assert sorted(chain(*chain(*ranks))) == list(range(11))
    cut_once = eval_batches(ids, 3, 1, 0)
    assert all(batch in cut_once for batches in ranks for batch in batches)
    assert eval_batches(ids, 3, 5, 4) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_takes_the_published_batches(seed: int, batch_size: int) -> None:
    """torchvision's CocoDetection sorts the ids; a SequentialSampler keeps this order."""
    ids = np.random.default_rng(seed).choice(581_929, 18, replace=False)
    in_order = sorted(ids.tolist())
    published = [list(batch) for batch in BatchSampler(SequentialSampler(in_order), batch_size, drop_last=False)]
    found = eval_batches(ids, batch_size, 1, 0)
    assert [ids[batch].tolist() for batch in found] == [[in_order[i] for i in batch] for batch in published]


def bucketed(world_size: int = 1, rank: int = 0, seed: int = 3, epoch: int = 2) -> list[list[int]]:
    return epoch_batches(len(RATIOS), 8 // world_size, world_size, rank, seed, epoch, RATIOS)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_same_bucketed_batches(world_size: int) -> None:
    ranks = [bucketed(world_size, rank) for rank in range(world_size)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == bucketed()


def test_buckets_hold_the_same_images_as_the_plain_order() -> None:
    plain = epoch_batches(len(RATIOS), 8, 1, 0, 3, 2)
    assert sorted(chain(*bucketed())) == sorted(chain(*plain))
    assert [len(batch) for batch in bucketed()] == [len(batch) for batch in plain] == [8] * 25


def test_a_batch_is_of_like_ratio_but_where_buckets_meet() -> None:
    mixed = [batch for batch in bucketed() if len({RATIOS[index] for index in batch}) > 1]
    assert len(mixed) <= 4  # five ratios
    assert all(len({RATIOS[index] for index in batch}) == 2 for batch in mixed)


def test_ratios_that_differ_by_little_share_a_bucket() -> None:
    ratios = [4 / 3 * (1.0 if index % 2 else 1.01) for index in range(200)]
    batches = epoch_batches(200, 10, 1, 0, 0, 0, ratios)
    assert sum(len({ratios[index] for index in batch}) == 2 for batch in batches) > 15


def test_bucketed_batches_come_in_an_order_of_their_own() -> None:
    """A function of seed and epoch; neither sorted by ratio nor the same images side by side every epoch."""
    assert bucketed() == bucketed()
    orders = [bucketed(seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(chain(*order)) for order in orders}) == 4
    means = [sum(RATIOS[index] for index in batch) / 8 for batch in orders[0]]
    assert sum(a > b + 1e-9 for a, b in pairwise(means)) > 5
    assert {frozenset(batch) for batch in orders[0]}.isdisjoint({frozenset(batch) for batch in orders[1]})


def test_too_few_images_are_refused_in_buckets_too() -> None:
    with pytest.raises(DataError, match="7 training images do not fill one batch of 8"):
        epoch_batches(7, 8, 1, 0, 0, 0, [1.0] * 7)
