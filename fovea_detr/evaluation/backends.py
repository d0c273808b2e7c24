"""The two evaluators of COCO's metrics, which give the same numbers: hotcoco (Rust, the default) and pycocotools.

hotcoco takes columns of numbers. `summarize`, and `load_res` with a category that the ground truth does not have, write
to the terminal past any redirection: neither is called here. pycocotools is the reference that hotcoco is tested
against. Its index gets its dicts through `dataset` and `createIndex`: `loadRes` takes almost twice the time, because it
adds a polygon to every detection.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import hotcoco
import hotcoco.mask
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval


class Boxes(NamedTuple):
    """N objects or detections as columns. Images and categories are numbered from 1."""

    images: np.ndarray  # [N] int64
    categories: np.ndarray  # [N] int64
    xywh: np.ndarray  # [N, 4] float64 pixels
    areas: np.ndarray  # [N] float64 pixels
    crowds: np.ndarray  # [N] bool; of detections all False
    scores: np.ndarray | None = None  # [N] float64; of detections
    masks: np.ndarray | None = None  # [N] run lengths, as pycocotools has them

    def take(self, rows: np.ndarray) -> Boxes:
        return Boxes(*(None if column is None else column[rows] for column in self))  # pyright: ignore[reportArgumentType]

    def with_areas_of_masks(self) -> Boxes:
        """For an evaluation of masks, in which those of the detections count."""
        assert self.masks is not None
        areas = hotcoco.mask.area(self.masks.tolist())  # pycocotools fails on more than 255
        return self._replace(areas=np.array(areas, np.float64))


class Split(NamedTuple):
    """The images of a split, numbered from 1 to `images`, and its categories by their numbers."""

    images: int
    categories: dict[int, str]

    def as_dicts(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        categories = [{"id": category, "name": name} for category, name in self.categories.items()]
        return [{"id": number} for number in range(1, self.images + 1)], categories


class Backend(NamedTuple):
    """truth: the index of a split's objects. found: of detections on it. evaluator: of both, as COCOeval."""

    truth: Callable[[Split, Boxes], Any]
    found: Callable[[Split, Any, Boxes], Any]
    evaluator: Callable[..., Any]

    def evaluation(self, truth: Any, found: Any, images: Sequence[int] | None = None, kind: str = "bbox") -> Any:
        """COCOeval, evaluated. images: the numbers of those to look at; None for all. kind: bbox or segm."""
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = self.evaluator(truth, found, kind)
            if images is not None:
                evaluation.params.imgIds = list(images)
            evaluation.evaluate()
        return evaluation


def _fast_truth(split: Split, boxes: Boxes) -> Any:
    images, categories = split.as_dicts()
    columns = (boxes.images, boxes.categories, boxes.xywh)
    masks = None if boxes.masks is None else boxes.masks.tolist()
    options = {"area": boxes.areas, "iscrowd": boxes.crowds, "segmentation": masks}
    return hotcoco.COCO.from_arrays(images, categories, *columns, **options)


def _fast_found(_: Split, truth: Any, boxes: Boxes) -> Any:
    assert boxes.scores is not None
    rows = np.column_stack([boxes.images, boxes.xywh, boxes.scores, boxes.categories])
    if boxes.masks is None:
        return truth.load_res(rows)
    found = truth.load_res(rows, segmentation=boxes.masks.tolist())
    found.update_anns(ids=np.arange(1, len(rows) + 1), area=boxes.areas)
    return found


def _reference_index(split: Split, boxes: Boxes) -> Any:
    index: Any = pycocotools.coco.COCO()
    images, categories = split.as_dicts()
    columns: dict[str, Any] = dict(
        zip(("image_id", "category_id", "bbox", "area", "iscrowd", "score", "segmentation"), boxes, strict=True)
    )
    columns["id"] = np.arange(1, len(boxes.images) + 1)  # 0 means "no match"
    columns["iscrowd"] = boxes.crowds.astype(int)
    lists = {key: column.tolist() for key, column in columns.items() if column is not None}
    lines = [dict(zip(lists, line, strict=True)) for line in zip(*lists.values(), strict=True)]
    sized = [{**one, "height": 0, "width": 0} for one in images]  # asked for, not used: every mask is run lengths
    index.dataset = {"images": sized, "annotations": lines, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    return index


BACKENDS = {  # evaluation.backend
    "hotcoco": Backend(_fast_truth, _fast_found, hotcoco.COCOeval),
    "pycocotools": Backend(
        _reference_index, lambda split, _, boxes: _reference_index(split, boxes), pycocotools.cocoeval.COCOeval
    ),
}
