"""The visible masks of the shapes, and their panoptic annotations: things, crowds, and the background as stuff."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask

from fovea_detr.data.panoptic import as_png
from fovea_detr.data.shapes.drawing import CATEGORIES

coco_mask: Any = pycocotools.mask  # its type hints know no lists

BACKGROUND = len(CATEGORIES) + 1  # the id of the stuff


def write_masks(images: Path, to: Path, split: str, visible: Callable[[int], Sequence[np.ndarray]]) -> None:
    """Write annotations/instances_SPLIT2017.json, annotations/panoptic_SPLIT2017.json and panoptic_SPLIT2017/ in `to`.

    images: the folder of the generated images. visible: of the image of that index, the mask of each annotation. A
    wholly covered object is left out.
    """
    content = json.loads((images / "annotations" / f"instances_{split}2017.json").read_text())
    of_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for one in content["annotations"]:
        of_image[one["image_id"]].append(one)
    instances, segments = [], []
    (to / "annotations").mkdir(parents=True, exist_ok=True)
    (to / f"panoptic_{split}2017").mkdir()
    for index, image in enumerate(content["images"]):
        seen = [(one, mask) for one, mask in zip(of_image[image["id"]], visible(index), strict=True) if mask.any()]
        instances += [{**one, **_drawn(mask)} for one, mask in seen]
        ids, infos = _panoptic(seen)
        name = f"{Path(image['file_name']).stem}.png"
        as_png(ids).save(to / f"panoptic_{split}2017" / name)
        segments.append({"image_id": image["id"], "file_name": name, "segments_info": infos})
    kinds = [{**one, "isthing": 1} for one in content["categories"]]
    kinds.append({"id": BACKGROUND, "name": "background", "supercategory": "stuff", "isthing": 0})
    parts = {"instances": {"annotations": instances}, "panoptic": {"annotations": segments, "categories": kinds}}
    for name, part in parts.items():
        (to / "annotations" / f"{name}_{split}2017.json").write_text(json.dumps(content | part))


def _drawn(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"area": int(mask.sum()), "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()}}


def _panoptic(seen: Sequence[tuple[dict[str, Any], np.ndarray]]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """[h, w] ids from 1, and their segments_info: the objects, then the background."""
    rest = ~np.any([mask for _, mask in seen], axis=0)
    background = {"category_id": BACKGROUND, "iscrowd": 0}
    ids, infos = np.zeros(rest.shape, np.uint32), []
    for number, (one, mask) in enumerate([*seen, (background, rest)], start=1):
        ids[mask] = number
        infos.append(_segment(number, one, mask))
    return ids, infos


def _segment(number: int, one: dict[str, Any], mask: np.ndarray) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    kind = {"category_id": one["category_id"], "iscrowd": one["iscrowd"]}
    return {"id": number, **kind, "area": int(mask.sum()), "bbox": [int(side) for side in box]}
