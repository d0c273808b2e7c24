"""The matches of one evaluation, and TIDE's types of error, from hotcoco.

D. Bolya, S. Foley, J. Hays, J. Hoffman, "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from fovea_detr.data.annotations import collector_paused
from fovea_detr.evaluation.backends import BACKENDS
from fovea_detr.evaluation.coco import DetectionTable, GroundTruth
from fovea_detr.evaluation.matches import AREAS, ERRORS, Matches

IMAGES_AT_ONCE = 200  # their cells are Python lists: about 4 kB for each detection
Cell = dict[str, Any]  # of one image, category and area, as in COCOeval.evalImgs
Found = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # images, scores [D]; matched, ignored [A, D]
Objects = tuple[np.ndarray, np.ndarray]  # images [M], counts [A, M]


def matches_of(truth: GroundTruth, table: DetectionTable, ap: float, source: str = "evaluation") -> Matches:
    """The matches of a table of detections, whose AP the evaluator has given."""
    backend = BACKENDS["hotcoco"]
    index = backend.truth(truth.split, truth.objects)
    found = backend.found(truth.split, index, truth.boxes_of(table))
    whole = backend.evaluation(index, found)
    ids, numbers = sorted(truth.names), range(1, truth.split.images + 1)
    parts: dict[int, list[Found]] = {category: [] for category in ids}
    objects: dict[int, list[Objects]] = {category: [] for category in ids}
    for first in range(0, len(numbers), IMAGES_AT_ONCE):
        part = backend.evaluation(index, found, numbers[first : first + IMAGES_AT_ONCE])
        for category, cells in _by_category(part).items():
            parts[category].append(_detections(cells))
            objects[category].append(_objects(cells))
    return Matches(
        image_ids=truth.image_ids,
        category_ids=np.array(ids, np.int64),
        category_names=np.array([truth.names[one] for one in ids], str),
        ious=np.array(whole.params.iouThrs),
        **_best_first(list(parts.values())),
        **_counted(list(objects.values())),
        errors=_errors(whole),
        ap=ap,
        source=source,
    )


def _by_category(evaluation: Any) -> dict[int, list[list[Cell]]]:
    """The cells of each category and each of the A areas, by image. Every area has the same images."""
    areas = [list(limits) for limits in evaluation.params.areaRng]
    assert tuple(evaluation.params.areaRngLbl) == AREAS
    found: dict[int, list[list[Cell]]] = {}
    with collector_paused():
        every = evaluation.evalImgs
    for cell in every:
        if cell is not None:
            by_area = found.setdefault(cell["category_id"], [[] for _ in areas])
            by_area[areas.index(list(cell["aRng"]))].append(cell)
    for by_area in found.values():
        for cells in by_area:
            cells.sort(key=lambda cell: cell["image_id"])
    return found


def _detections(by_area: list[list[Cell]]) -> Found:
    cells = by_area[0]
    images = np.repeat([cell["image_id"] - 1 for cell in cells], [len(cell["dtIds"]) for cell in cells])
    scores = np.fromiter(chain.from_iterable(cell["dtScores"] for cell in cells), np.float64)
    matched, ignored = (np.stack([_bits(cells, key) for cells in by_area]) for key in ("dtMatched", "dtIgnore"))
    return images, scores, matched & ~ignored, ignored


def _bits(cells: list[Cell], key: str) -> np.ndarray:
    """[D] uint16 of the detections of these cells: bit t from the row t of `key`."""
    rows = (np.fromiter(chain.from_iterable(cell[key][t] for cell in cells), bool) for t in range(len(cells[0][key])))
    return np.bitwise_or.reduce([row.astype(np.uint16) << t for t, row in enumerate(rows)], dtype=np.uint16)


def _objects(by_area: list[list[Cell]]) -> Objects:
    """The images that hold objects that count in any area, [M], and how many in each, [A, M]."""
    counts = np.array([[len(c["gtIgnore"]) - sum(c["gtIgnore"]) for c in cells] for cells in by_area], np.int64)
    images = np.array([cell["image_id"] - 1 for cell in by_area[0]], np.int64)
    return images[counts.any(0)], counts[:, counts.any(0)]


def _best_first(parts: list[list[Found]]) -> dict[str, np.ndarray]:
    """The columns of the detections, category after category, each sorted as COCOeval does it."""
    nothing = (np.zeros(0, np.int64), np.zeros(0), *np.zeros((2, len(AREAS), 0), np.uint16))
    joined = [[np.concatenate(column, axis=-1) for column in zip(nothing, *one, strict=True)] for one in parts]
    orders = [np.argsort(-scores, kind="mergesort") for _, scores, _, _ in joined]
    images, _, matched, ignored = (
        np.concatenate([one[place][..., order] for one, order in zip(joined, orders, strict=True)], axis=-1)
        for place in range(len(nothing))
    )
    starts = np.cumsum([0, *(len(order) for order in orders)])
    return {"starts": starts, "images": images, "matched": matched, "ignored": ignored}


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


def _errors(evaluation: Any) -> np.ndarray:
    """What AP at an IoU of 0.5 would gain if all errors of a type were mended, by type; the types are TIDE's.

    0 where there is no object at all.
    """
    gains = evaluation.tide_errors(pos_thr=0.5, bg_thr=0.1)["delta_ap"]
    return np.array([gains[name] for name in ERRORS])
