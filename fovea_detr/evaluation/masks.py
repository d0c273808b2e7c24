"""From logits to instance masks of the image on disk, as published, in memory that does not depend on their number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from torch import Tensor
from torch.nn import functional

from fovea_detr.types import Predictions

coco_mask: Any = pycocotools.mask  # its type hints know no lists

AT_ONCE = 1 << 24  # values of masks that are resized at once: 64 MiB in float32
SizeHW = tuple[int, int]  # pixels
Rle = dict[str, Any]  # size [H, W], counts bytes: as pycocotools has it


def sizes_of(sizes_hw: Tensor | Sequence[Sequence[int]]) -> list[SizeHW]:
    """[B, 2] -> one (height, width) for each image."""
    return [(int(height), int(width)) for height, width in torch.as_tensor(sizes_hw).tolist()]


def largest(sizes_hw: Sequence[SizeHW]) -> SizeHW:
    """The size that images of these sizes are padded to."""
    return max(height for height, _ in sizes_hw), max(width for _, width in sizes_hw)


def binary_masks(logits: Tensor, batch_hw: SizeHW, own_hw: SizeHW, final_hw: SizeHW) -> Iterator[Tensor]:
    """Logits [N, h / 4, w / 4] of one image -> its masks, bool, a few at a time, [n, H, W] in all [N, H, W].

    As DETR has it (PostProcessSegm): resized to the largest size of the batch's images (bilinear), above a probability
    of 0.5, cut to the image's own size, resized to the final one (nearest).
    """
    if not len(logits):  # which torch resizes to nothing but an error
        return
    for part in logits.split(max(1, AT_ONCE // (batch_hw[0] * batch_hw[1]))):
        large = functional.interpolate(part[None], batch_hw, mode="bilinear", align_corners=False)[0]
        own = (large.sigmoid() > 0.5)[:, None, : own_hw[0], : own_hw[1]]
        yield functional.interpolate(own.to(torch.uint8), final_hw, mode="nearest")[:, 0].bool()


def masks_of_queries(
    predictions: Predictions, queries: Sequence[Tensor], processed_hw: Sequence[SizeHW], final_hw: Sequence[SizeHW]
) -> Iterator[tuple[Iterator[Tensor], Tensor]]:
    """Of each image the masks of these queries, [N] int64 each, every one once, as `binary_masks` gives them.

    With them the place of each query's mask among these, [N], on the CPU: a query may be asked for several times.
    """
    once = [torch.unique(chosen, return_inverse=True) for chosen in queries]
    found, batch_hw = predictions.masks_of([chosen for chosen, _ in once]), largest(processed_hw)
    for logits, (_, places), own, final in zip(found, once, processed_hw, final_hw, strict=True):
        yield binary_masks(logits, batch_hw, own, final), places.cpu()


def whole_masks(
    predictions: Predictions, queries: Sequence[Tensor], processed_hw: Sequence[SizeHW], final_hw: Sequence[SizeHW]
) -> Iterator[Tensor]:
    """Of each image the masks of these queries, [N, H, W] bool, on the CPU."""
    found = masks_of_queries(predictions, queries, processed_hw, final_hw)
    for (parts, places), final in zip(found, final_hw, strict=True):
        yield torch.cat([torch.zeros(0, *final, dtype=torch.bool), *(part.cpu() for part in parts)])[places]


def encoded_masks(
    predictions: Predictions, queries: Sequence[Tensor], processed_hw: Sequence[SizeHW], final_hw: Sequence[SizeHW]
) -> list[Rle]:
    """The masks of these queries of all images, image after image, as run lengths."""
    rles: list[Rle] = []
    for parts, places in masks_of_queries(predictions, queries, processed_hw, final_hw):
        mine = [rle for part in parts for rle in encoded(part)]
        rles += [mine[place] for place in places.tolist()]
    return rles


def encoded(masks: Tensor) -> list[Rle]:
    """[n, H, W] bool -> their run lengths."""
    return coco_mask.encode(np.asfortranarray(masks.permute(1, 2, 0).to(torch.uint8).numpy(force=True)))
