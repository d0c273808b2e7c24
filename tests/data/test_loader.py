"""Batches: who gets which images, padding, and the same result for any number of workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch

from fovea_detr.data.batches import epoch_batches
from fovea_detr.data.coco import CocoDataset, Draw, Example
from fovea_detr.data.loader import Loader, collate_images
from fovea_detr.data.readers import read_coco
from fovea_detr.data.transforms import eval_transform, train_transform
from fovea_detr.errors import DataError
from fovea_detr.types import Batch, Target
from tests.data.builders import image_path, truncate, write_awkward, write_coco

Step = tuple[Batch, list[Target]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    root = write_coco(tmp_path_factory.mktemp("coco"), images=[(40 + i, 60 - i) for i in range(12)])
    transform = train_transform("coco", short_sides=range(24, 40), max_side=64, crop_sides=(16, 30))
    return CocoDataset(read_coco(root, "train"), transform)


def steps_of(dataset: CocoDataset, batches: list[list[int]], workers: int = 0, epoch: int = 0) -> list[Step]:
    with closing(Loader(dataset, seed=1, workers=workers)) as loader:
        return list(loader.read(batches, epoch=epoch))


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
    dataset = CocoDataset(
        read_coco(write_awkward(tmp_path), "val"), eval_transform("coco", short_side=48, max_side=100)
    )
    ((first, targets), (second, _)) = steps_of(dataset, [[0, 1, 2], [3]])
    assert first.image_ids == (1, 2, 3)
    assert first.images.shape == (3, 3, 64, 100)
    assert first.images.dtype == torch.uint8
    assert first.sizes_hw.tolist() == [[48, 64], [64, 48], [15, 100]]
    assert first.original_sizes_hw.tolist() == [[48, 64], [64, 48], [300, 2000]]
    assert [target.labels.tolist() for target in targets] == [[3, 90], [], [7]]
    assert targets[1].boxes_cxcywh.shape == (0, 4)
    assert second.images.shape == (1, 3, 100, 15)


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


def test_no_batches_is_an_empty_pass_without_workers(dataset: CocoDataset) -> None:
    loader = Loader(dataset, seed=0, workers=2)
    assert list(loader.read([])) == []
    assert loader.padding_share == 0
    assert multiprocessing.active_children() == []
    loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_live_from_epoch_to_epoch(dataset: CocoDataset, workers: int) -> None:
    batches = [epoch_batches(len(dataset), 3, 1, 0, seed=1, epoch=epoch) for epoch in range(3)]
    pids: set[frozenset[int | None]] = set()
    with closing(Loader(dataset, seed=1, workers=workers)) as loader:
        for epoch in range(3):
            assert_same(list(loader.read(batches[epoch], epoch=epoch)), steps_of(dataset, batches[epoch], 0, epoch))
            pids.add(frozenset(process.pid for process in multiprocessing.active_children()))
    assert [len(some) for some in pids] == [workers]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_left_in_the_middle_leaves_nothing_to_the_next(dataset: CocoDataset, workers: int) -> None:
    batches = epoch_batches(len(dataset), 2, 1, 0, seed=1, epoch=4)
    with closing(Loader(dataset, seed=1, workers=workers)) as loader:
        left = loader.read(batches, epoch=4)
        next(left)
        assert_same(list(loader.read(batches[1:], epoch=5)), steps_of(dataset, batches[1:], 0, 5))
        with pytest.raises(AssertionError, match="another pass"):
            list(left)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_in_memory_are_the_same_through_workers(tmp_path: Path, workers: int) -> None:
    root, transform = write_coco(tmp_path), train_transform("tiny", long_side=32)
    in_memory = CocoDataset(read_coco(root, "train"), transform, in_memory=True)
    from_disk = CocoDataset(read_coco(root, "train"), transform)
    assert_same(steps_of(in_memory, [[0, 1]], workers, epoch=3), steps_of(from_disk, [[0, 1]], 0, epoch=3))


def test_the_padding_share_is_that_of_the_padded_pixels(dataset: CocoDataset) -> None:
    batches = epoch_batches(len(dataset), 3, 1, 0, seed=1, epoch=4)
    with closing(Loader(dataset, seed=1, workers=0)) as loader:
        for part in (batches, batches[2:]):  # anew in every pass
            steps = list(loader.read(part, epoch=4))
            every = sum(batch.images[:, 0].numel() for batch, _ in steps)
            own = sum(int(batch.sizes_hw.prod(dim=1).sum()) for batch, _ in steps)
            assert loader.padding_share == pytest.approx(1 - own / every)
            assert 0 < loader.padding_share < 1


def test_the_ratios_of_an_epoch_are_those_of_its_images(dataset: CocoDataset) -> None:
    ratios = dataset.aspect_ratios(seed=1, epoch=4)
    images = [dataset[Draw(index, epoch=4, seed=1)].image for index in range(len(dataset))]
    assert ratios == [image.shape[2] / image.shape[1] for image in images]
    assert ratios != dataset.aspect_ratios(seed=1, epoch=5)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_image_reaches_the_main_process_in_one_line(tmp_path: Path, workers: int) -> None:
    dataset = CocoDataset(read_coco(write_coco(tmp_path), "train"), eval_transform("tiny"))
    truncate(image_path(tmp_path, 2))
    with closing(Loader(dataset, seed=0, workers=workers)) as loader:
        steps = loader.read([[0], [1]])
        assert next(steps)[0].image_ids == (1,)
        with pytest.raises(DataError) as caught:
            next(steps)
    assert type(caught.value) is DataError
    assert "000002.jpg" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert multiprocessing.active_children() == []  # though the traceback is still held


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
        with closing(Loader(Signalled(dataset, os.getpid()), seed=1, workers=1)) as loader:
            for _ in range(2):
                assert [batch.image_ids for batch, _ in loader.read([[0, 1], [2]])] == [(1, 2), (3,)]
        assert received == []
        for number in numbers:
            os.kill(os.getpid(), number)
        assert received == list(numbers)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


LEFT = """
import os, signal, sys
from pathlib import Path
from contextlib import closing
from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.readers import read_coco
from fovea_detr.data.loader import Loader
from fovea_detr.data.transforms import eval_transform

dataset = CocoDataset(read_coco(Path(sys.argv[1]), "train"), eval_transform("tiny"))
with closing(Loader(dataset, seed=0, workers=2)) as loader:
    for batch, _ in loader.read([[0], [1]] * 20):
        print(*(worker.pid for worker in loader._packs._workers), flush=True)
        if sys.argv[2] == "a worker is killed":
            os.kill(loader._packs._workers[0].pid, signal.SIGKILL)
        else:
            raise RuntimeError("in the middle of an epoch")
"""


@pytest.mark.parametrize("how", ["an error", "a worker is killed"])
def test_a_process_that_leaves_takes_its_workers_along(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-c", LEFT, str(write_coco(tmp_path)), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Error" in done.stderr  # a killed worker shows as torch's RuntimeError, or as the end of its connection
    pids = {int(pid) for pid in done.stdout.split()}
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
