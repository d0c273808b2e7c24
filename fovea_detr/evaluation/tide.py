"""TIDE's types of error: what AP at an IoU of 0.5 would gain if all errors of one type were mended.

D. Bolya, S. Foley, J. Hays, J. Hoffman, "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020,
section 2.2. A false positive is, the first that holds: Loc, its best object of its category has an IoU in [0.1, 0.5);
Cls, an object of another category has 0.5 or more; Dupe, one of its category has, which a better detection has found;
Bkg, no object has 0.1; else Both. Miss: an object that nothing has found, and no Loc or Cls is about. Mended, the best
Loc or Cls about an object that nothing has found is a true positive, every other error is gone, and a missed object
does not count. Crowds are no objects here; hotcoco's own `tide_errors` takes them for some.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hotcoco.primitives import bbox_iou, mask_iou

from fovea_detr.evaluation.backends import Boxes
from fovea_detr.evaluation.matches import ERRORS

FOUND, BACKGROUND = 0.5, 0.1  # IoU
RECALLS = np.linspace(0.0, 1.0, 101)
CLS, LOC, BOTH, DUPE, BKG, MISS = range(len(ERRORS))
TRUE = -1  # the kind of a true positive


class Judged(NamedTuple):
    """D detections, best first. kinds: TRUE or a place in ERRORS. objects: the object that each is about, or -1."""

    kinds: np.ndarray
    objects: np.ndarray


def error_gains(objects: Boxes, detections: Boxes, owners: np.ndarray) -> np.ndarray:
    """G objects that count; D detections that count, best first; [D] the object that each has found, or -1.

    Detections with masks are compared by their masks.

    -> [len(ERRORS)] gains of AP, fractions. 0 without any object.
    """
    judged, found = _judge(objects, detections, owners), np.isin(np.arange(len(objects.images)), owners)
    claims = np.flatnonzero(np.isin(judged.kinds, (CLS, LOC)))
    claimed, first = np.unique(judged.objects[claims], return_index=True)
    best = np.zeros(len(owners), bool)
    best[claims[first]] = ~found[claimed]
    mended, is_cls = detections.categories.copy(), judged.kinds == CLS
    mended[is_cls] = objects.categories[judged.objects[is_cls]]
    hits, counts = judged.kinds == TRUE, objects.categories
    base = _mean_ap(hits, detections.categories, counts, counts)
    gains = []
    for kind in range(MISS):
        of_kind = judged.kinds == kind
        kept = ~of_kind | best
        own = mended if kind == CLS else detections.categories
        gains.append(_mean_ap((hits | of_kind)[kept], own[kept], counts, counts) - base)
    told = found.copy()
    told[claimed] = True
    gains.append(_mean_ap(hits, detections.categories, counts[told], counts) - base)
    return np.array(gains)


def _judge(objects: Boxes, detections: Boxes, owners: np.ndarray) -> Judged:
    """Image by image."""
    kinds, about = np.where(owners >= 0, TRUE, BKG), owners.copy()
    wrong = np.flatnonzero(owners < 0)
    wrong = wrong[np.argsort(detections.images[wrong], kind="stable")]
    by_image = np.argsort(objects.images, kind="stable")
    if len(wrong) == 0:
        return Judged(kinds, about)
    images, starts = np.unique(detections.images[wrong], return_index=True)
    limits = [np.searchsorted(objects.images[by_image], images, side) for side in ("left", "right")]
    for rows, first, last in zip(np.split(wrong, starts[1:]), *limits, strict=True):
        if last > first:
            own = by_image[first:last]
            kinds[rows], about[rows] = _of_image(objects, own, detections, rows)
    return Judged(kinds, about)


def _of_image(objects: Boxes, own: np.ndarray, detections: Boxes, rows: np.ndarray) -> Judged:
    """The false positives and the objects of one image, one object at least."""
    ious = _ious(detections.take(rows), objects.take(own))
    is_same = detections.categories[rows][:, None] == objects.categories[own]
    same, other = np.where(is_same, ious, 0.0), np.where(is_same, 0.0, ious)
    best_same, best_other = same.max(1), other.max(1)
    kinds = np.select(
        [
            (best_same >= BACKGROUND) & (best_same < FOUND),
            best_other >= FOUND,
            best_same >= FOUND,
            np.maximum(best_same, best_other) < BACKGROUND,
        ],
        [LOC, CLS, DUPE, BKG],
        BOTH,
    )
    return Judged(kinds, np.where(kinds == CLS, own[other.argmax(1)], own[same.argmax(1)]))


def _ious(detections: Boxes, objects: Boxes) -> np.ndarray:
    """[D, G] between their boxes or, where the detections have masks, between these."""
    crowds = np.zeros(len(objects.images), bool)
    if detections.masks is None:
        return bbox_iou(detections.xywh, objects.xywh, crowds)
    assert objects.masks is not None
    return mask_iou(detections.masks.tolist(), objects.masks.tolist(), crowds)


def _mean_ap(hits: np.ndarray, categories: np.ndarray, counted: np.ndarray, every: np.ndarray) -> float:
    """Detections best first, with their categories; the categories of the objects that count, and of all objects.

    The mean over the categories of all objects; 0 for one of which no object counts.
    """
    aps = [_ap(hits[categories == one], int((counted == one).sum())) for one in np.unique(every)]
    return float(np.mean(aps)) if aps else 0.0


def _ap(hits: np.ndarray, objects: int) -> float:
    if objects == 0 or not hits.any():
        return 0.0
    true = np.cumsum(hits)
    precision = np.maximum.accumulate((true / np.arange(1, len(hits) + 1))[::-1])[::-1]
    reached = np.searchsorted(true / objects, RECALLS)
    return float(precision[reached[reached < len(hits)]].sum() / len(RECALLS))
