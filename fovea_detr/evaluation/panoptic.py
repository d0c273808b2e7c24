"""The panoptic merge: the masks of all queries become one map of segments, as published (DETR, PostProcessPanoptic)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fovea_detr.errors import UserError
from fovea_detr.evaluation.masks import AT_ONCE, SizeHW, largest, sizes_of
from fovea_detr.types import Predictions

THRESHOLD = 0.85  # published, of score="softmax"
LAST_THING = 90  # COCO's things have ids up to here, its stuff has 92 to 200
SMALLEST = 4  # pixels; a segment of so many, or fewer, is dropped
Segments = list[dict[str, Any]]
IsThing = Mapping[int, bool] | Callable[[int], bool]


def panoptic(
    predictions: Predictions,
    processed_hw: Tensor | Sequence[Sequence[int]],
    sizes_hw: Tensor | Sequence[Sequence[int]],
    threshold: float | None = None,
    is_thing: IsThing | None = None,
    *,
    score: str = "softmax",
    crop: bool = False,
) -> list[tuple[Tensor, Segments]]:
    """-> for each image its map of ids [H, W] int64, on the CPU, and its segments_info in COCO's format, ids from 0.

    processed_hw [B, 2]: the images' own sizes in the batch. sizes_hw [B, 2]: those of the maps. threshold: above which
    a query is kept; None: 0.85, of softmax. is_thing: by output, or a function of it; None: outputs up to 90, as in
    COCO. Outputs that a mapping does not have are passed over.

    score: "softmax", as published; "sigmoid", this project's own, for a model that has no class "no object", with a
    threshold of its own. crop: cut the padding off before a mask is resized, this project's own; the published merge
    stretches the masks of padded images, so that it needs batches of one image.

    UserError: this score does not fit the model, or has no threshold.
    """
    _check_score(predictions, score, threshold)
    known = dict(is_thing) if isinstance(is_thing, Mapping) else None
    things = is_thing if callable(is_thing) else (known or {}).__getitem__ if known else _is_coco_thing
    own, final = sizes_of(processed_hw), sizes_of(sizes_hw)
    kept = _kept(predictions, score, THRESHOLD if threshold is None else threshold, known)
    masks = predictions.masks_of([queries for queries, _ in kept])
    return [
        merged(_resized(one, size, largest(own) if crop else None), labels.tolist(), to, things)
        for one, (_, labels), size, to in zip(masks, kept, own, final, strict=True)
    ]


def _is_coco_thing(label: int) -> bool:
    return label <= LAST_THING


def _check_score(predictions: Predictions, score: str, threshold: float | None) -> None:
    if score not in ("softmax", "sigmoid"):
        raise UserError(f"score={score} is not one of softmax, sigmoid")
    if score != predictions.activation:
        raise UserError(
            f"score={score}: the model's scores are {predictions.activation}; the published panoptic merge needs the "
            'class "no object", which a focal loss does not have: use score="sigmoid" and a threshold of its own'
        )
    if score == "sigmoid" and threshold is None:
        raise UserError(f'score="sigmoid" needs a threshold of its own: {THRESHOLD} was chosen for softmax')


def _kept(
    predictions: Predictions, score: str, threshold: float, known: Mapping[int, bool] | None
) -> list[tuple[Tensor, Tensor]]:
    """For each image the queries that are kept, in their order, and their labels, [n] each."""
    logits = predictions.logits[-1].float()
    scores, labels = (logits.softmax(-1) if score == "softmax" else logits.sigmoid()).max(-1)
    keep = scores > threshold
    if score == "softmax":
        keep &= labels != logits.shape[-1] - 1  # "no object"
    if known is not None:
        keep &= torch.isin(labels, torch.tensor(list(known), device=labels.device))
    return [(one.nonzero()[:, 0], of_image[one]) for one, of_image in zip(keep, labels, strict=True)]


def _resized(logits: Tensor, own_hw: SizeHW, batch_hw: SizeHW | None) -> Tensor:
    """[n, h / 4, w / 4] -> [n, h, w]. batch_hw: resize to it, then cut to the image; None: resize to the image."""
    large = functional.interpolate(logits[:, None], batch_hw or own_hw, mode="bilinear", align_corners=False)
    return large[:, 0, : own_hw[0], : own_hw[1]]


def merged(
    masks: Tensor, labels: list[int], final_hw: SizeHW, is_thing: Callable[[int], bool]
) -> tuple[Tensor, Segments]:
    """Logits [n, h, w] of the kept queries of one image, and their labels -> the map of ids [H, W], and the segments.

    Stuff of one class is joined in the first pass alone: the ids that it leaves without a pixel are dropped with the
    small segments, and the pixels are given away anew, as published.
    """
    ids = _best(masks)
    for label in {label for label in labels if not is_thing(label)}:
        equal = [place for place, other in enumerate(labels) if other == label]
        ids[np.isin(ids, equal)] = equal[0]
    while True:
        final = np.asarray(Image.fromarray(ids).resize((final_hw[1], final_hw[0]), Image.Resampling.NEAREST))
        areas = np.bincount(final.ravel(), minlength=len(labels))[: len(labels)]
        kept = np.flatnonzero(areas > SMALLEST).tolist()
        if len(kept) == len(labels):
            break
        masks, labels = masks[kept], [labels[place] for place in kept]
        ids = _best(masks)
    return torch.from_numpy(final.astype(np.int64)), [
        {"id": place, "isthing": is_thing(label), "category_id": label, "area": int(area)}
        for place, (label, area) in enumerate(zip(labels, areas.tolist(), strict=True))
    ]


def _best(masks: Tensor) -> np.ndarray:
    """[n, h, w] logits -> [h, w] int32: the first of the best at each pixel, by the softmax over n; 0 without any."""
    if not len(masks):
        return np.zeros(masks.shape[1:], np.int32)
    pixels = masks.flatten(1).transpose(0, 1)  # [h * w, n]
    best = [part.softmax(-1).argmax(-1) for part in pixels.split(max(1, AT_ONCE // len(masks)))]
    return torch.cat(best).view(masks.shape[1:]).to(torch.int32).numpy(force=True)
