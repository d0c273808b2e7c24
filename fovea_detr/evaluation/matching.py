"""The matches of one evaluation, from hotcoco's cells, one for each image, category and area."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import hotcoco
import numpy as np

from fovea_detr.data.annotations import collector_paused
from fovea_detr.data.object_table import LARGEST_AREA
from fovea_detr.evaluation.backends import BACKENDS, Boxes
from fovea_detr.evaluation.coco import DetectionTable, GroundTruth
from fovea_detr.evaluation.matches import AREAS, Matches
from fovea_detr.evaluation.tide import error_gains

IMAGES_AT_ONCE = 200  # their cells are Python lists: about 4 kB for each detection
FAST = "hotcoco"  # the backend that the matches are taken from, whichever gives the metrics
IOUS = np.array(hotcoco.Params("bbox").iou_thrs)  # 0.5, 0.55, ... 0.95
Cell = dict[str, Any]  # of one image, category and area, as in COCOeval.evalImgs
Columns = dict[str, np.ndarray]  # [D] images, scores, ids, owners (at an IoU of 0.5); [A, D] matched, ignored
Objects = tuple[np.ndarray, np.ndarray]  # images [M], counts [A, M]


def matches_of(
    truth: GroundTruth, table: DetectionTable, ap: float, source: str = "evaluation", kind: str = "bbox"
) -> Matches:
    """The matches of a table of detections, whose AP the evaluator has given. kind: of boxes (bbox) or masks (segm)."""
    boxes, names = truth.boxes_of(table, kind), truth.split.categories
    parts: dict[int, list[Columns]] = {category: [] for category in names}
    objects: dict[int, list[Objects]] = {category: [] for category in names}
    for cells in _cells(truth, boxes, kind):
        for category, by_area in _by_category(cells).items():
            parts[category].append(_detections(by_area))
            objects[category].append(_objects(by_area))
    starts, columns = _best_first(list(parts.values()))
    return Matches(
        image_ids=truth.image_ids,
        category_ids=truth.category_ids,
        category_names=np.array(list(names.values()), str),
        ious=IOUS,
        starts=starts,
        images=columns["images"],
        matched=columns["matched"],
        ignored=columns["ignored"],
        **_counted(list(objects.values())),
        errors=_errors(truth.objects, boxes, columns),
        ap=ap,
        source=source,
    )


def _cells(truth: GroundTruth, boxes: Boxes, kind: str) -> Iterator[list[Cell]]:
    """The cells of some images at a time."""
    backend = BACKENDS[FAST]
    index = truth.index if truth.backend == FAST else backend.truth(truth.split, truth.objects)
    found = backend.found(truth.split, index, boxes)
    for first in range(1, truth.split.images + 1, IMAGES_AT_ONCE):
        last = min(first + IMAGES_AT_ONCE - 1, truth.split.images)
        with collector_paused():
            yield backend.evaluation(index, found, range(first, last + 1), kind).evalImgs


def _by_category(cells: list[Cell]) -> dict[int, list[list[Cell]]]:
    """The cells of each category and each of the A areas, by image. Every area has the same images."""
    limits = [list(limits) for limits in hotcoco.Params("bbox").area_rng]
    found: dict[int, list[list[Cell]]] = {}
    for cell in sorted(cells, key=lambda cell: cell["image_id"]):
        by_area = found.setdefault(cell["category_id"], [[] for _ in limits])
        by_area[limits.index(cell["aRng"])].append(cell)
    return found


def _detections(by_area: list[list[Cell]]) -> Columns:
    cells = by_area[0]

    def column(kind: type, values: Callable[[Cell], list[Any]]) -> np.ndarray:
        return np.fromiter(chain.from_iterable(map(values, cells)), kind)

    matched, ignored = (np.stack([_bits(cells, key) for cells in by_area]) for key in ("dtMatched", "dtIgnore"))
    return {
        "images": np.repeat([cell["image_id"] - 1 for cell in cells], [len(cell["dtIds"]) for cell in cells]),
        "scores": column(np.float64, lambda cell: cell["dtScores"]),
        "ids": column(np.int64, lambda cell: cell["dtIds"]),
        "owners": column(np.int64, lambda cell: cell["dtMatches"][0]),
        "matched": matched & ~ignored,
        "ignored": ignored,
    }


def _bits(cells: list[Cell], key: str) -> np.ndarray:
    """[D] uint16 of the detections of these cells: bit t from the row t of `key`."""
    rows = (np.fromiter(chain.from_iterable(cell[key][t] for cell in cells), bool) for t in range(len(cells[0][key])))
    return np.bitwise_or.reduce([row.astype(np.uint16) << t for t, row in enumerate(rows)], dtype=np.uint16)


def _objects(by_area: list[list[Cell]]) -> Objects:
    """The images that hold objects that count in any area, [M], and how many in each, [A, M]."""
    counts = np.array([[len(c["gtIgnore"]) - sum(c["gtIgnore"]) for c in cells] for cells in by_area], np.int64)
    images = np.array([cell["image_id"] - 1 for cell in by_area[0]], np.int64)
    return images[counts.any(0)], counts[:, counts.any(0)]


def _best_first(parts: list[list[Columns]]) -> tuple[np.ndarray, Columns]:
    """starts [K + 1] and the columns of the detections, category after category, each sorted as COCOeval does it."""
    none, zero = np.zeros(0, np.int64), np.zeros((len(AREAS), 0), np.uint16)
    empty = {"images": none, "scores": np.zeros(0), "ids": none, "owners": none, "matched": zero, "ignored": zero}
    joined = [{key: np.concatenate([empty[key], *(c[key] for c in one)], axis=-1) for key in empty} for one in parts]
    orders = [np.argsort(-one["scores"], kind="mergesort") for one in joined]
    pairs = list(zip(joined, orders, strict=True))
    columns = {key: np.concatenate([empty[key], *(one[key][..., order] for one, order in pairs)], -1) for key in empty}
    return np.cumsum([0, *(len(order) for order in orders)]), columns


def _counted(parts: list[list[Objects]]) -> dict[str, np.ndarray]:
    """The columns of the objects, category after category."""
    nothing = (np.zeros(0, np.int64), np.zeros((len(AREAS), 0), np.int64))
    flat = [(images, np.full(len(images), place), counts) for place, one in enumerate(parts) for images, counts in one]
    images = np.concatenate([nothing[0], *(one[0] for one in flat)])
    categories = np.concatenate([nothing[0], *(one[1] for one in flat)])
    return {
        "object_images": images,
        "object_categories": categories,
        "objects": np.concatenate([nothing[1], *(one[2] for one in flat)], axis=1),
    }


def _errors(objects: Boxes, boxes: Boxes, columns: Columns) -> np.ndarray:
    """The gains by TIDE's types of error, from the detections and objects that count at an IoU of 0.5."""
    counted = np.flatnonzero(~objects.crowds & (objects.areas <= LARGEST_AREA))
    places = np.full(len(objects.images) + 1, -1)
    places[counted + 1] = np.arange(len(counted))  # by id; 0, no object, has none
    order = np.argsort(-columns["scores"], kind="stable")
    order = order[columns["ignored"][0, order] & 1 == 0]
    return error_gains(objects.take(counted), boxes.take(columns["ids"][order] - 1), places[columns["owners"][order]])
