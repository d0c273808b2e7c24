"""Which images make up which batch, and the loader that decodes them: the same batches for any number of workers."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from fovea_detr.data.coco import Draw, Example
from fovea_detr.data.transforms import mixed_seed
from fovea_detr.errors import DataError
from fovea_detr.types import Batch, Target

# A cluster signals every process of a job; only the main one decides when to stop, and its workers go when it does.
IGNORED_BY_WORKERS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


def epoch_batches(
    num_images: int, batch_size_per_rank: int, world_size: int, rank: int, seed: int, epoch: int
) -> list[list[int]]:
    """This rank's share of every full batch of the epoch; the last, incomplete one is dropped.

    A global batch holds the same images however it is split over ranks. DataError: not one global batch is full.
    """
    total = batch_size_per_rank * world_size
    if num_images < total:
        raise DataError(
            f"{num_images} training images do not fill one batch of {total} ({world_size} processes x "
            f"{batch_size_per_rank} images): lower schedule.batch_size or use fewer processes"
        )
    generator = Generator().manual_seed(mixed_seed("order", seed, epoch))
    order = torch.randperm(num_images, generator=generator).tolist()
    mine = (step * total + rank * batch_size_per_rank for step in range(num_images // total))
    return [order[start : start + batch_size_per_rank] for start in mine]


def eval_batches(num_images: int, batch_size: int, world_size: int, rank: int) -> list[list[int]]:
    """The split cut into batches, the same for any world size, dealt out in turn. A rank may get none."""
    batches = [list(range(s, min(s + batch_size, num_images))) for s in range(0, num_images, batch_size)]
    return batches[rank::world_size]


def collate_images(
    images: Sequence[Tensor], original_sizes_hw: Sequence[tuple[int, int]] = (), image_ids: Sequence[int] = ()
) -> Batch:
    """Normalised images [3, h, w] padded with zeros at the bottom and the right to the largest height and width.

    Without `original_sizes_hw`, the images' own sizes stand in for their sizes on disk.
    """
    sizes_hw = torch.tensor([image.shape[-2:] for image in images], dtype=torch.int64)
    height, width = sizes_hw.amax(dim=0).tolist()
    padded = images[0].new_zeros(len(images), 3, height, width)
    for slot, image in zip(padded, images, strict=True):
        slot[:, : image.shape[-2], : image.shape[-1]].copy_(image)
    originals = torch.tensor(original_sizes_hw, dtype=torch.int64) if original_sizes_hw else sizes_hw.clone()
    return Batch(padded, sizes_hw, originals, tuple(image_ids))


@dataclass(frozen=True)
class Loader:
    """One pass over `batches`, as (Batch, one Target an image). Made by `build_loader`."""

    dataset: Dataset[Example]
    batches: Sequence[Sequence[int]]
    epoch: int
    seed: int
    workers: int
    pin_memory: bool

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Batch, list[Target]]]:
        if not self.batches:
            return
        loader = DataLoader(
            _ErrorsAsValues(self.dataset),
            batch_sampler=[[Draw(index, self.epoch, self.seed) for index in batch] for batch in self.batches],
            collate_fn=_pack,
            num_workers=min(self.workers, len(self.batches)),
            worker_init_fn=_ignore_signals,
            pin_memory=self.pin_memory,
            generator=Generator(),  # its own: the base seed is not to advance torch's global generator
        )
        with _signals_held_back():  # a worker starts with them blocked, and ignores them before it lets them through
            packs = iter(loader)
        try:
            for pack in packs:
                yield _unpack(pack)
        finally:
            # Ends the workers now. A traceback would keep this frame, and the process' exit would wait for workers that
            # ignore its SIGTERM.
            del packs


def build_loader(
    dataset: Dataset[Example],
    batches: Sequence[Sequence[int]],
    *,
    epoch: int,
    seed: int,
    workers: int,
    pin_memory: bool = False,
) -> Loader:
    """An iterable over (Batch, list[Target]); to go on in the middle of an epoch pass `batches[k:]`.

    DataError (an image that cannot be read) is raised in the calling process, at the batch that holds the image.
    """
    return Loader(dataset, batches, epoch, seed, workers, pin_memory)


class _ErrorsAsValues(Dataset):
    """Hands a DataError on as a value: raised in a worker it would reach the user inside that worker's traceback."""

    def __init__(self, dataset: Dataset[Example]) -> None:
        self.dataset = dataset

    def __getitem__(self, draw: Draw) -> Example | DataError:
        try:
            return self.dataset[draw]
        except DataError as error:
            return error


class _Pack(NamedTuple):
    """A batch as few plain tensors, which DataLoader knows how to pin and to send; `objects` counts them per image."""

    images: Tensor
    sizes_hw: Tensor
    original_sizes_hw: Tensor
    image_ids: list[int]
    labels: Tensor
    boxes_cxcywh: Tensor
    objects: list[int]


def _pack(examples: list[Example | DataError]) -> _Pack | DataError:
    for example in examples:
        if isinstance(example, DataError):
            return example
    good: list[Any] = examples
    batch = collate_images([e.image for e in good], [e.original_size_hw for e in good], [e.image_id for e in good])
    targets = [e.target for e in good]
    labels, boxes = (torch.cat([getattr(t, name) for t in targets]) for name in ("labels", "boxes_cxcywh"))
    counts = [len(target) for target in targets]
    return _Pack(batch.images, batch.sizes_hw, batch.original_sizes_hw, list(batch.image_ids), labels, boxes, counts)


def _unpack(pack: _Pack | DataError) -> tuple[Batch, list[Target]]:
    if isinstance(pack, DataError):
        raise pack
    batch = Batch(pack.images, pack.sizes_hw, pack.original_sizes_hw, tuple(pack.image_ids))
    parts = zip(pack.labels.split(pack.objects), pack.boxes_cxcywh.split(pack.objects), strict=True)
    return batch, [Target(labels, boxes) for labels, boxes in parts]


def _ignore_signals(_worker: int) -> None:
    for number in IGNORED_BY_WORKERS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_BY_WORKERS)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_BY_WORKERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
