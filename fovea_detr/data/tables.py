"""The annotations of a split as arrays: converted and checked once, for training and evaluation alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fovea_detr.data.columns import Column, fields, integers
from fovea_detr.data.flaws import Fate, Flaws
from fovea_detr.data.image_table import Images, check_files, parse_images
from fovea_detr.data.masks import MaskReader
from fovea_detr.data.object_table import ObjectParser, Objects
from fovea_detr.errors import DataError

HIGHEST_CATEGORY = 1 << 53  # a column of detections, which is float64, counts exactly up to here


@dataclass(frozen=True)
class Tables:
    """One split's images, objects and categories {id: name}, and the flaws that were found on the way."""

    images: Images
    objects: Objects
    categories: dict[int, str]
    flaws: Flaws

    @classmethod
    def parse(cls, path: Path, folder: Path, content: Any, masks: MaskReader | None = None) -> Tables:
        """content: COCO's dict. folder: of the images. path: for messages. DataError: not COCO's format at all.

        masks: reads those of the objects; None for boxes alone.
        """
        images, annotations, categories = (_entries(path, content, k) for k in ("images", "annotations", "categories"))
        flaws = Flaws(path, objects=len(annotations), images=len(images))
        names = _parse_categories(categories, flaws)
        image_ids, owners = _ids(images, annotations, flaws)
        table = parse_images(images, image_ids, flaws)
        check_files(table, folder, flaws)
        return cls(table, ObjectParser(annotations, owners, table, flaws, masks).parse(names), names, flaws)


def _entries(path: Path, content: Any, key: str) -> list[Any]:
    table = content.get(key) if isinstance(content, dict) else None
    if not isinstance(table, list) or (not table and key != "annotations"):
        raise DataError(
            f"{path}: holds no {key}; it must have the format of COCO's instances_*.json (object detection)"
        )
    return table


def _parse_categories(entries: list[Any], flaws: Flaws) -> dict[int, str]:
    """The names by id. A name that is null or no text is the id; of an id used twice, the first name counts."""
    ids, valid = integers(fields(entries, "id"))
    valid &= (ids <= HIGHEST_CATEGORY) & (ids >= -HIGHEST_CATEGORY)
    flaws.add(
        "categories without an integer id of at most 2**53", Fate.REFUSED, np.flatnonzero(~valid), lambda i: entries[i]
    )
    names: dict[int, str] = {}
    twice = []
    for i, name in zip(ids[valid].tolist(), np.array(fields(entries, "name"), object)[valid], strict=True):
        text = str(name) if isinstance(name, str | int | float) else str(i)
        text = text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair: no file could hold it
        if names.setdefault(i, text) != text:
            twice.append(f"{i} ({names[i]}, {text})")
    flaws.add("category ids used twice (the first name counts)", Fate.KEPT, twice)
    return names


def _ids(images: list[Any], annotations: list[Any], flaws: Flaws) -> tuple[Column, Column]:
    """The ids of the images, and the image ids of the annotations: each the values and the mask of the valid ones.

    Where an image's id is a word, the images are numbered from 1 in their order, and annotations found by their text.
    """
    own, theirs = fields(images, "id"), fields(annotations, "image_id")
    ids, valid = integers(own)
    words = [own[i] for i in np.flatnonzero(~valid) if _is_text(own[i])]
    if not words:
        return (ids, valid), integers(theirs)
    kind = "image ids that are no integers (images are numbered from 1 instead, also in predictions)"
    flaws.add(kind, Fate.KEPT, words)
    number_of: dict[str, int] = {}
    for number, one in enumerate(own, start=1):
        number_of.setdefault(str(one), number)
    found = ([number_of.get(str(one)) if _is_text(one) else None for one in column] for column in (own, theirs))
    return integers(next(found)), integers(next(found))


def _is_text(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)
