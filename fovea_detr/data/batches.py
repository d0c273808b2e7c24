"""The images of each batch, and the batches of each rank. A batch does not depend on the number of ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator

from fovea_detr.data.transforms import mixed_seed
from fovea_detr.errors import DataError

BUCKETS_PER_OCTAVE = 8  # of aspect ratios: width / height inside a bucket differs by at most 9 %


def epoch_batches(
    num_images: int,
    batch_size_per_rank: int,
    world_size: int,
    rank: int,
    seed: int,
    epoch: int,
    aspect_ratios: Sequence[float] | None = None,
) -> list[list[int]]:
    """This rank's share of every full batch of the epoch; the last, incomplete one is dropped.

    A global batch holds the same images for any number of ranks. With `aspect_ratios` (width / height of every image)
    a batch holds images of similar ratio; the images of the epoch and the number of batches do not change.
    DataError: there are fewer images than one global batch needs.
    """
    total = batch_size_per_rank * world_size
    if num_images < total:
        raise DataError(
            f"{num_images} training images do not fill one batch of {total} ({world_size} processes x "
            f"{batch_size_per_rank} images): set schedule.batch_size={max(1, num_images // world_size)}"
            f"{' and use fewer processes' if num_images < world_size else ''}"
        )
    generator = Generator().manual_seed(mixed_seed("order", seed, epoch))
    order = torch.randperm(num_images, generator=generator).tolist()
    starts = range(0, num_images - total + 1, total)
    if aspect_ratios is not None:
        # Bucket after bucket, each in random order; a batch at the border of two buckets holds images of both.
        order = sorted(order[: len(starts) * total], key=lambda index: _bucket(aspect_ratios[index]))
        starts = [starts[i] for i in torch.randperm(len(starts), generator=generator).tolist()]
    mine = (start + rank * batch_size_per_rank for start in starts)
    return [order[start : start + batch_size_per_rank] for start in mine]


def _bucket(aspect_ratio: float) -> int:
    return round(BUCKETS_PER_OCTAVE * math.log2(aspect_ratio))


def eval_batches(image_ids: np.ndarray, batch_size: int, world_size: int, rank: int) -> list[list[int]]:
    """This rank's share of the split's batches, which are the same for any world size. A rank may get none.

    The images are taken by ascending id, as in DETR: the padding of a batch, and so AP, depends on the order.
    """
    order = image_ids.argsort(kind="stable").tolist()
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return batches[rank::world_size]
