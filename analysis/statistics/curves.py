"""AP and recall of one run on resampled images, from its matches: what COCOeval gives on a split of copied images.

A resample is a weight w for each image, how often it was drawn. Per category, area and IoU, detections in COCOeval's
order: TP = cumsum(w m), FP = cumsum(w (1 - m)) over those not ignored, recall = TP / sum(w g), precision = the running
maximum from the right of TP / (TP + FP), AP = its mean at 101 recalls. Between two true positives only the sum of the
weights of the detections there matters, and after the last one nothing, so that a sparse product does most of the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from fovea_detr.evaluation.matches import AREAS, Matches

RECALLS = np.linspace(0.0, 1.0, 101)
TINY = np.spacing(1)  # as in COCOeval


@dataclass(frozen=True)
class Curve:
    """One category and area, N images. U: the detections that are a true positive at any IoU.

    calls: [U, N] sparse: how many detections of an image stand between the one before and this one, with it. at: for
    each IoU, which of U are true positives there. unseen: for each IoU, the part of `calls` that is ignored, or None.
    """

    images: np.ndarray  # [U]
    calls: sparse.csr_matrix
    at: list[np.ndarray]
    unseen: list[sparse.csr_matrix | None]

    @classmethod
    def of(cls, images: np.ndarray, matched: np.ndarray, ignored: np.ndarray, num_images: int, num_ious: int) -> Curve:
        """images, matched, ignored: [D], of Matches."""
        true = np.flatnonzero(matched)
        closing = np.searchsorted(true, np.arange(len(images)))
        counted = (closing < len(true)) & (ignored != (1 << num_ious) - 1)

        def sums(mask: np.ndarray) -> sparse.csr_matrix:
            cells = (np.ones(mask.sum()), (closing[mask], images[mask]))
            return sparse.csr_matrix(cells, shape=(len(true), num_images))

        hidden = [counted & (ignored >> t & 1).astype(bool) for t in range(num_ious)]
        at = [np.flatnonzero(matched[true] >> t & 1) for t in range(num_ious)]
        unseen = [sums(mask) if mask.any() else None for mask in hidden]
        return cls(images[true], sums(counted), at, unseen)

    def precision(self, weights: np.ndarray, objects: np.ndarray) -> np.ndarray:
        """weights [N, B], objects [B], how many are there -> [T, B] the mean precision over the recalls."""
        calls, own = np.cumsum(self.calls @ weights, axis=0), weights[self.images]
        found = np.zeros((len(self.at), weights.shape[1]))
        for t, (at, unseen) in enumerate(zip(self.at, self.unseen, strict=True)):
            if len(at):
                seen = calls[at] if unseen is None else calls[at] - np.cumsum(unseen @ weights, axis=0)[at]
                found[t] = _mean_precision(np.cumsum(own[at], axis=0), seen, objects)
        return found


def _mean_precision(true: np.ndarray, calls: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """[U, B] cumulated true positives and calls, [B] objects -> [B]."""
    precision = true / (calls + TINY)
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = true / np.maximum(objects, 1)
    nearest = np.rint(recall * 100).astype(np.intp)
    reached = nearest + (RECALLS[nearest] <= recall)  # how many of the 101 recalls
    first = np.einsum("b,b->b", precision[0], reached[0])
    return (first + np.einsum("ub,ub->b", precision[1:], np.diff(reached, axis=0))) / len(RECALLS)


@dataclass(frozen=True)
class Curves:
    """All categories of a run in one area."""

    matches: Matches
    area: str = "all"

    @property
    def _place(self) -> int:
        return AREAS.index(self.area)

    @cached_property
    def curves(self) -> list[Curve]:
        """Of each category."""
        m, shape = self.matches, (len(self.matches.image_ids), len(self.matches.ious))
        parts = [slice(*pair) for pair in zip(m.starts[:-1], m.starts[1:], strict=True)]
        return [
            Curve.of(m.images[part], m.matched[self._place, part], m.ignored[self._place, part], *shape)
            for part in parts
        ]

    @cached_property
    def _objects(self) -> sparse.csr_matrix:
        m = self.matches
        cells = (m.objects[self._place].astype(float), (m.object_categories, m.object_images))
        return sparse.csr_matrix(cells, shape=(len(m.category_ids), len(m.image_ids)))

    def precisions(self, weights: np.ndarray) -> np.ndarray:
        """weights [N, B] -> AP [T, K, B]; NaN for a category without an object in the resample."""
        objects = self._objects @ weights
        found = [curve.precision(weights, count) for curve, count in zip(self.curves, objects, strict=True)]
        return np.where(objects > 0, np.stack(found, axis=1), np.nan)

    def recalls(self, weights: np.ndarray, detections: int) -> np.ndarray:
        """weights [N, B] -> the share of objects found by the best `detections` of an image [T, K, B]; NaN as above."""
        objects = self._objects @ weights
        found = np.stack([hits @ weights for hits in self._hits(detections)])
        return np.where(objects > 0, found / np.maximum(objects, 1), np.nan)

    def _hits(self, detections: int) -> list[sparse.csr_matrix]:
        """For each IoU, the true positives by category and image [K, N] among the best detections of each."""
        m = self.matches
        categories = np.repeat(np.arange(len(m.category_ids)), np.diff(m.starts))
        pairs = categories * len(m.image_ids) + m.images
        order = np.argsort(pairs, kind="stable")
        starts = np.searchsorted(pairs[order], pairs[order])  # of the first of the same pair
        ranks = np.empty(len(pairs), np.int64)
        ranks[order] = np.arange(len(pairs)) - starts
        shape = (len(m.category_ids), len(m.image_ids))
        bits = np.where(ranks < detections, m.matched[self._place], 0)
        masks = [(bits >> t & 1).astype(bool) for t in range(len(m.ious))]
        return [sparse.csr_matrix((np.ones(x.sum()), (categories[x], m.images[x])), shape=shape) for x in masks]
