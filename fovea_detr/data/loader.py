"""The loader: worker processes decode, augment and pad images as uint8; the number of workers changes nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from fovea_detr.data.coco import Draw, Example
from fovea_detr.errors import DataError
from fovea_detr.runs.stop import IGNORED_BY_WORKERS, signals_held_back
from fovea_detr.types import Batch, Target


def collate_images(
    images: Sequence[Tensor], original_sizes_hw: Sequence[tuple[int, int]] = (), image_ids: Sequence[int] = ()
) -> Batch:
    """Images [3, h, w] padded with zeros at the bottom and the right to the largest height and width.

    Images: uint8, which the model normalises, or normalised floats. `original_sizes_hw`: the sizes on disk; by default
    those of the images.
    """
    sizes_hw = torch.tensor([image.shape[-2:] for image in images], dtype=torch.int64)
    height, width = sizes_hw.amax(dim=0).tolist()
    if images[0].dtype == torch.uint8:  # interleaved, as decoded and resized: rows are copied whole
        padded = images[0].new_zeros(len(images), height, width, 3).permute(0, 3, 1, 2)
    else:
        padded = images[0].new_zeros(len(images), 3, height, width)
    for slot, image in zip(padded, images, strict=True):
        slot[:, : image.shape[-2], : image.shape[-1]].copy_(image)
    originals = torch.tensor(original_sizes_hw, dtype=torch.int64) if original_sizes_hw else sizes_hw.clone()
    return Batch(padded, sizes_hw, originals, tuple(image_ids))


class Loader:
    """A split's images as (Batch, one Target per image), decoded by workers that run from the first pass to `close`.

    DataError (an image that cannot be read) is raised in the calling process, at the batch that holds the image.
    seed: of the augmentation. workers: processes; 0 decodes in the calling one. pin_memory: for copies to a GPU.
    """

    def __init__(self, dataset: Dataset[Example], *, seed: int, workers: int, pin_memory: bool = False) -> None:
        self.seed = seed
        self._draws = _Draws()
        self._data_loader = DataLoader(
            _ErrorsAsValues(dataset),
            batch_sampler=self._draws,
            collate_fn=_pack,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_signals,
            pin_memory=pin_memory,
            generator=Generator(),  # else the base seed would be drawn from torch's global generator
        )
        self._packs: Any = None
        self._is_closed = False
        self._passes = self._own_pixels = self._all_pixels = 0

    def read(self, batches: Sequence[Sequence[int]], *, epoch: int = 0) -> Iterator[tuple[Batch, list[Target]]]:
        """One pass over these batches; `batches[k:]` continues an epoch at batch k. Ends the previous pass.

        The result does not depend on the number of workers.
        """
        assert not self._is_closed, "this loader was closed"
        self._passes += 1
        self._own_pixels = self._all_pixels = 0
        if not batches:
            return
        mine = self._passes
        self._draws.begin(batches, epoch, self.seed)
        with signals_held_back():  # a worker inherits them blocked, and unblocks them once it ignores them
            self._packs = iter(self._data_loader)
        for pack in self._packs:
            yield self._unpack(pack)
            assert mine == self._passes, "another pass over this loader has begun"

    @property
    def padding_share(self) -> float:
        """1 - sum(h * w) / (B * H * W) over the current or last pass on this rank; 0 before the first."""
        return 1 - self._own_pixels / self._all_pixels if self._all_pixels else 0.0

    def close(self) -> None:
        """End the workers for good. They ignore SIGTERM, so that an exiting process would wait for them.

        The garbage collector would not do: a traceback keeps the frames that hold the iterator.
        """
        self._is_closed = True
        if self._packs is not None and self._data_loader.num_workers:
            self._packs._shutdown_workers()  # torch has no public way to end persistent workers
        self._packs = None

    def _unpack(self, pack: _Pack | DataError) -> tuple[Batch, list[Target]]:
        if isinstance(pack, DataError):
            raise pack
        self._own_pixels += pack.own_pixels
        self._all_pixels += pack.images[:, 0].numel()
        batch = Batch(pack.images, pack.sizes_hw, pack.original_sizes_hw, tuple(pack.image_ids))
        parts = zip(pack.labels.split(pack.objects), pack.boxes_cxcywh.split(pack.objects), _masks(pack), strict=True)
        return batch, [Target(*one) for one in parts]


class _Draws:
    """The batch sampler: what the workers read in the current pass, the only thing that changes between epochs."""

    def begin(self, batches: Sequence[Sequence[int]], epoch: int, seed: int) -> None:
        self.batches, self.epoch, self.seed = batches, epoch, seed

    def __iter__(self) -> Iterator[list[Draw]]:
        return ([Draw(index, self.epoch, self.seed) for index in batch] for batch in self.batches)


class _ErrorsAsValues(Dataset):
    """Returns a DataError as a value: raised in a worker, it would arrive wrapped in the worker's traceback."""

    def __init__(self, dataset: Dataset[Example]) -> None:
        self.dataset = dataset

    def __getitem__(self, draw: Draw) -> Example | DataError:
        try:
            return self.dataset[draw]
        except DataError as error:
            return error


class _Pack(NamedTuple):
    """A batch as a few plain tensors, which DataLoader can pin and send. objects: their number in each image."""

    images: Tensor
    sizes_hw: Tensor
    original_sizes_hw: Tensor
    image_ids: list[int]
    labels: Tensor
    boxes_cxcywh: Tensor
    objects: list[int]
    own_pixels: int  # without padding
    mask_bits: Tensor | None = None  # [bytes] uint8: the masks of each image, eight pixels a byte


def _pack(examples: list[Example | DataError]) -> _Pack | DataError:
    for example in examples:
        if isinstance(example, DataError):
            return example
    good: list[Any] = examples
    batch = collate_images([e.image for e in good], [e.original_size_hw for e in good], [e.image_id for e in good])
    targets = [e.target for e in good]
    labels, boxes = (torch.cat([getattr(t, name) for t in targets]) for name in ("labels", "boxes_cxcywh"))
    return _Pack(
        batch.images,
        batch.sizes_hw,
        batch.original_sizes_hw,
        list(batch.image_ids),
        labels,
        boxes,
        [len(target) for target in targets],
        sum(e.image[0].numel() for e in good),
        _bits([t.masks for t in targets]),
    )


def _bits(masks: Sequence[Tensor | None]) -> Tensor | None:
    packed = [np.packbits(one.numpy()) for one in masks if one is not None]
    return torch.from_numpy(np.concatenate(packed)) if packed else None


def _masks(pack: _Pack) -> Iterator[Tensor | None]:
    """The masks [T, h, w] of each image."""
    at = 0
    for count, (height, width) in zip(pack.objects, pack.sizes_hw.tolist(), strict=True):
        if pack.mask_bits is None:
            yield None
            continue
        pixels = count * height * width
        bits = pack.mask_bits[at : at + -(-pixels // 8)].numpy()
        at += len(bits)
        yield torch.from_numpy(np.unpackbits(bits, count=pixels)).view(torch.bool).view(count, height, width)


def _ignore_signals(_worker: int) -> None:
    for number in IGNORED_BY_WORKERS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_BY_WORKERS)
