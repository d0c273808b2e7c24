"""What a figure of heads shows, in pixels of the image: detections, a head's attention, its prior and its centre."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.colors import LogNorm
from torch import Tensor
from torchvision.ops import box_iou, nms

from fovea_detr.boxes import cxcywh_to_xyxy
from fovea_detr.errors import UserError
from fovea_detr.predict.capture import Capture
from fovea_detr.predict.cells import attention_at_pixels, pixels_of, prior_at_pixels

LEAST_RANGE = 10.0  # the colours of attention reach at least so many times even attention


class Marked(NamedTuple):
    """A query to draw, its caption, and its box: left, top, right, bottom in pixels of the image."""

    query: int
    title: str
    box_xyxy: np.ndarray


@dataclass(frozen=True)
class View:
    """An image, [h, w, 3] uint8 as stored and upright, and what the model computed on it. names: of the classes."""

    image: np.ndarray
    names: dict[int, str]
    capture: Capture

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]

    @property
    def heads(self) -> range:
        return range(len(self.capture.layers[0].attention))

    @property
    def has_prior(self) -> bool:
        """Not so with plain DETR."""
        return self.capture.layers[0].log_prior is not None

    def best_queries(self, count: int = 3) -> list[int]:
        """The `count` queries with the highest scores, best first, one per object (NMS at IoU 0.5)."""
        return nms(self._boxes_xyxy(), torch.from_numpy(self._scores().max(axis=1)), 0.5)[:count].tolist()

    def nearest_query(self, box_xyxy: np.ndarray) -> int:
        """The query whose box has the highest IoU with this one, in pixels."""
        return int(box_iou(torch.from_numpy(box_xyxy)[None], self._boxes_xyxy()).argmax())

    def marked(self, queries: Sequence[int]) -> list[Marked]:
        """The queries with their detections: the last layer's box in pixels and the best class. Raises UserError."""
        scores, boxes_xyxy = self._scores(), self._boxes_xyxy().numpy()
        for query in queries:
            if not 0 <= query < len(scores):
                raise UserError(f"--queries {query}: the model has queries 0 to {len(scores) - 1}")
        best = scores.argmax(axis=1).tolist()
        names = {q: f"{self.names.get(best[q], f'class {best[q]}')} {scores[q, best[q]]:.2f}" for q in queries}
        return [Marked(q, f"query {q}: {name}", boxes_xyxy[q]) for q, name in names.items()]

    def layers(self, numbers: Sequence[int]) -> list[int]:
        """Layer numbers counted from 0; negative ones count from the end. Raises UserError."""
        count = len(self.capture.layers)
        for number in numbers:
            if not -count <= number < count:
                raise UserError(f"--layers {number}: the decoder has layers 0 to {count - 1}, or -1 to {-count}")
        return [number % count for number in numbers]

    def attention(self, layer: int, query: int, head: int | None = None) -> np.ndarray:
        """A head's attention, or the mean of all, at every pixel [h, w], as a multiple of even attention."""
        seen, maps = self.capture, self.capture.layers[layer].attention
        cells = (maps.mean(0) if head is None else maps[head])[query].double().numpy()
        return attention_at_pixels(cells * cells.size, self.size_hw, seen.size_hw, seen.stride, seen.first_cell)

    def prior(self, layer: int, query: int, head: int) -> np.ndarray | None:
        """exp(log_prior) at every pixel [h, w]; None if this head has no prior for the query."""
        maps = self.capture.layers[layer]
        if maps.log_prior_at is None or not maps.has_prior[head, query]:
            return None
        formula = partial(maps.log_prior_at, head, query)
        return prior_at_pixels(formula, self.size_hw, self.capture.size_hw, self.capture.stride)

    def centres(self, query: int, head: int) -> np.ndarray:
        """The centres of a head's prior by layer, (x, y) in pixels of the image [layers, 2]."""
        centres = [maps.centres_cells for maps in self.capture.layers if maps.centres_cells is not None]
        cells = np.array([cells[head, query].tolist() for cells in centres])
        sides = zip(cells.T, self.size_hw[::-1], self.capture.size_hw[::-1], strict=True)
        return np.stack([pixels_of(own, pixels, size, self.capture.stride) for own, pixels, size in sides], axis=1)

    def _boxes_xyxy(self) -> Tensor:
        """Boxes of the last layer [Q, 4] in pixels of the image."""
        return cxcywh_to_xyxy(self.capture.predictions.boxes_cxcywh[-1, 0]) * torch.tensor(self.image.shape[1::-1] * 2)

    def _scores(self) -> np.ndarray:
        """Class scores of the last layer [Q, classes], without the no-object class."""
        logits = self.capture.predictions.logits[-1, 0]
        is_focal = self.capture.predictions.activation == "sigmoid"
        return (logits.sigmoid() if is_focal else logits.softmax(-1)[:, :-1]).numpy()


def attention_norm(maps: Iterable[Tensor]) -> LogNorm:
    """One scale for maps [..., rows, columns]: from even attention to the most, at least LEAST_RANGE."""
    most = (float(cells.max()) * cells.shape[-2] * cells.shape[-1] for cells in maps)
    return LogNorm(1, max(LEAST_RANGE, *most), clip=True)
