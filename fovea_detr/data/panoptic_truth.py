"""The types of the panoptic annotations that a run is evaluated against: the evaluator reads them after an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from fovea_detr.errors import DataError


class Segment(msgspec.Struct):
    id: int | float
    category_id: int | float
    area: float = 0.0
    iscrowd: bool | int = 0


class OfImage(msgspec.Struct):
    image_id: int | float
    file_name: str
    segments_info: list[Segment]


class Category(msgspec.Struct):
    id: int | float
    isthing: bool | int


class Truth(msgspec.Struct):
    categories: list[Category]
    annotations: list[OfImage]


def check_truth(path: Path, content: dict[str, Any]) -> None:
    """DataError: the first value of another type, or a category without `isthing`."""
    try:
        msgspec.convert(content, Truth)
    except msgspec.ValidationError as error:
        raise DataError(f"{path}: not COCO's panoptic format: {error}; correct it") from error
