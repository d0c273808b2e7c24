"""Batches: who gets which images, padding, and the same result for any number of workers."""

from __future__ import annotations

import os
import signal
from itertools import chain
from pathlib import Path

import pytest
import torch

from fovea_detr.data.coco import CocoDataset, Draw, Example
from fovea_detr.data.loader import Loader, build_loader, collate_images, epoch_batches, eval_batches
from fovea_detr.data.transforms import eval_transform, train_transform
from fovea_detr.errors import DataError
from fovea_detr.types import Batch, Target
from tests.data.builders import image_path, truncate, write_awkward, write_coco

Step = tuple[Batch, list[Target]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    root = write_coco(tmp_path_factory.mktemp("coco"), images=[(40 + i, 60 - i) for i in range(12)])
    transform = train_transform("coco", short_sides=range(24, 40), max_side=64, crop_sides=(16, 30))
    return CocoDataset(root, "train", transform)


def steps_of(dataset: CocoDataset, batches: list[list[int]], workers: int = 0, epoch: int = 0) -> list[Step]:
    return list(build_loader(dataset, batches, epoch=epoch, seed=1, workers=workers))


def assert_same(a: list[Step], b: list[Step]) -> None:
    assert len(a) == len(b)
    for (batch, targets), (other, others) in zip(a, b, strict=True):
        assert batch.image_ids == other.image_ids
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.sizes_hw, other.sizes_hw)
        assert torch.equal(batch.original_sizes_hw, other.original_sizes_hw)
        for target, another in zip(targets, others, strict=True):
            assert torch.equal(target.labels, another.labels)
            assert torch.equal(target.boxes_cxcywh, another.boxes_cxcywh)


def test_collate_pads_at_the_bottom_and_the_right() -> None:
    batch = collate_images([torch.ones(3, 4, 6), torch.ones(3, 5, 2)])
    assert batch.images.shape == (2, 3, 5, 6)
    assert batch.sizes_hw.tolist() == batch.original_sizes_hw.tolist() == [[4, 6], [5, 2]]
    assert batch.image_ids == ()
    assert batch.images[0, :, :4, :6].min() == batch.images[1, :, :5, :2].min() == 1
    assert batch.images.sum() == 3 * (4 * 6 + 5 * 2)


def test_batches_carry_sizes_ids_and_targets(tmp_path: Path) -> None:
    dataset = CocoDataset(write_awkward(tmp_path), "val", eval_transform("coco", short_side=48, max_side=100))
    ((first, targets), (second, _)) = steps_of(dataset, [[0, 1, 2], [3]])
    assert first.image_ids == (1, 2, 3)
    assert first.images.shape == (3, 3, 64, 100)
    assert first.images.dtype == torch.float32
    assert first.sizes_hw.tolist() == [[48, 64], [64, 48], [15, 100]]
    assert first.original_sizes_hw.tolist() == [[48, 64], [64, 48], [300, 2000]]
    assert [target.labels.tolist() for target in targets] == [[3, 90], [], [7]]
    assert targets[1].boxes_cxcywh.shape == (0, 4)
    assert second.images.shape == (1, 3, 100, 15)


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
    ranks = [eval_batches(11, 3, world_size, rank) for rank in range(world_size)]
    assert sorted(chain(*chain(*ranks))) == list(range(11))
    cut_once = eval_batches(11, 3, 1, 0)
    assert all(batch in cut_once for batches in ranks for batch in batches)
    assert eval_batches(11, 3, 5, 4) == []


def test_any_number_of_workers_gives_the_same(dataset: CocoDataset) -> None:
    batches = epoch_batches(len(dataset), 3, 1, 0, seed=1, epoch=4)
    alone = steps_of(dataset, batches, workers=0, epoch=4)
    for workers in (1, 2):
        assert_same(alone, steps_of(dataset, batches, workers, epoch=4))
    assert_same(alone[2:], steps_of(dataset, batches[2:], epoch=4))
    other_epoch = steps_of(dataset, batches, epoch=5)
    assert any(a[0].images.shape != b[0].images.shape for a, b in zip(alone, other_epoch, strict=True))


def test_an_image_is_the_same_in_any_batch(dataset: CocoDataset) -> None:
    ((batch, _),) = steps_of(dataset, [[4, 9]], epoch=4)
    alone = dataset[Draw(9, epoch=4, seed=1)].image
    height, width = batch.sizes_hw[1].tolist()
    assert torch.equal(batch.images[1, :, :height, :width], alone)


def test_loading_leaves_torchs_generator_alone(dataset: CocoDataset) -> None:
    before = torch.get_rng_state()
    for workers in (0, 1):
        steps_of(dataset, [[0, 1], [2, 3]], workers)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_batches_is_an_empty_loader(dataset: CocoDataset) -> None:
    loader = build_loader(dataset, [], epoch=0, seed=0, workers=2)
    assert isinstance(loader, Loader)
    assert len(loader) == 0
    assert list(loader) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_image_reaches_the_main_process_in_one_line(tmp_path: Path, workers: int) -> None:
    dataset = CocoDataset(write_coco(tmp_path), "train", eval_transform("tiny"))
    truncate(image_path(tmp_path, 2))
    steps = iter(build_loader(dataset, [[0], [1]], epoch=0, seed=0, workers=workers))
    assert next(steps)[0].image_ids == (1,)
    with pytest.raises(DataError) as caught:
        next(steps)
    assert type(caught.value) is DataError
    assert "000002.jpg" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


class Signalled(torch.utils.data.Dataset[Example]):
    """Sends its own process the signals a cluster sends, then reads on."""

    def __init__(self, dataset: CocoDataset, main: int) -> None:
        self.dataset, self.main = dataset, main

    def __getitem__(self, draw: Draw) -> Example:
        assert os.getpid() != self.main
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        return self.dataset[draw]


def test_workers_ignore_the_clusters_signals_and_the_main_process_does_not(dataset: CocoDataset) -> None:
    numbers = (signal.SIGUSR2, signal.SIGTERM)
    received: list[int] = []
    before = [signal.signal(number, lambda number, _: received.append(number)) for number in numbers]
    try:
        loader = build_loader(Signalled(dataset, os.getpid()), [[0, 1], [2]], epoch=0, seed=1, workers=1)
        assert [batch.image_ids for batch, _ in loader] == [(1, 2), (3,)]
        assert received == []
        for number in numbers:
            os.kill(os.getpid(), number)
        assert received == list(numbers)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
