"""The annotations of a split as arrays, and the checks that they must pass."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fovea_detr.data.categories import category_names
from fovea_detr.errors import DataError

EDGE = 1.0  # pixels by which a box may reach out of its image (rounding); it is clamped
TOLERATED = 10_000  # at most one broken box in so many annotations, as in COCO itself: it is left out of training
MOST_SIZES_READ = 10_000  # images; in a larger split an empty file is only found when decoded: stat is slow on NFS


@dataclass(frozen=True)
class Tables:
    """Annotations in COCO's format as arrays: N images and A annotations, not yet checked. path: named in errors."""

    path: Path
    image_ids: np.ndarray  # [N] int64
    file_names: list[str]
    sizes_hw: np.ndarray  # [N, 2] int64
    categories: dict[int, str]
    annotation_ids: list[Any]  # [A]; for messages only
    owners: np.ndarray  # [A] int64 image ids
    labels: np.ndarray  # [A] int64
    boxes_xywh: np.ndarray  # [A, 4] float64
    is_crowd: np.ndarray  # [A] bool

    @classmethod
    def parse(cls, path: Path, content: Any) -> Tables:
        """content: COCO's dict. DataError: a table or a field is missing, or a field is not a number."""
        images, annotations, categories = (_entries(path, content, k) for k in ("images", "annotations", "categories"))
        category_ids = _column(path, "category", categories, "id", np.int64).tolist()
        return cls(
            path=path,
            image_ids=_column(path, "image", images, "id", np.int64),
            file_names=[str(name) for name in _column(path, "image", images, "file_name", np.object_)],
            sizes_hw=np.stack([_column(path, "image", images, k, np.int64) for k in ("height", "width")], axis=1),
            categories=category_names(
                path, category_ids, [str(e.get("name", i)) for i, e in zip(category_ids, categories, strict=True)]
            ),
            owners=_column(path, "annotation", annotations, "image_id", np.int64),
            annotation_ids=[entry.get("id", "without id") for entry in annotations],
            labels=_column(path, "annotation", annotations, "category_id", np.int64),
            boxes_xywh=_column(path, "annotation", annotations, "bbox", np.float64, (4,)),
            is_crowd=np.array([bool(entry.get("iscrowd")) for entry in annotations], dtype=bool),
        )

    @cached_property
    def rows(self) -> np.ndarray:
        """[A] the index of each annotation's image in the image table; any index if there is no such image."""
        order = np.argsort(self.image_ids)
        return order[np.searchsorted(self.image_ids, self.owners, sorter=order).clip(max=len(order) - 1)]

    @property
    def boxes_xyxy(self) -> np.ndarray:
        return np.concatenate([self.boxes_xywh[:, :2], self.boxes_xywh[:, :2] + self.boxes_xywh[:, 2:]], axis=1)

    def clamped_xyxy(self) -> np.ndarray:
        limits = np.tile(self.sizes_hw[self.rows][:, ::-1], 2)
        return self.boxes_xyxy.clip(0, limits)

    def name(self, index: int) -> str:
        """How an error names an annotation."""
        image = self.file_names[self.rows[index]]
        return f"annotation {self.annotation_ids[index]} (image {image}, box {self.boxes_xywh[index].tolist()})"


def _entries(path: Path, content: Any, key: str) -> list[Any]:
    table = content.get(key) if isinstance(content, dict) else None
    if not isinstance(table, list) or (not table and key != "annotations"):
        raise DataError(
            f"{path}: holds no {key}; it must have the format of COCO's instances_*.json (object detection)"
        )
    return table


def _column(
    path: Path, kind: str, entries: list[Any], key: str, dtype: type, shape: tuple[int, ...] = ()
) -> np.ndarray:
    """[len(entries), *shape]: one field of all entries. DataError: the first entry in which it is missing or broken."""
    column = _converted(entries, key, dtype)
    if not entries:
        return np.zeros((0, *shape), dtype)
    if column is not None and column.shape == (len(entries), *shape):
        return column
    for entry in entries:
        field = _converted([entry], key, dtype)
        if field is None or field.shape != (1, *shape):
            raise DataError(f"{path}: {kind} {str(entry)[:120]}: '{key}' is missing or broken; correct it")
    raise AssertionError(f"{kind} {key}: each entry is valid, all together are not")


def _converted(entries: list[Any], key: str, dtype: type) -> np.ndarray | None:
    try:
        return np.array([entry[key] for entry in entries], dtype)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def check_annotations(tables: Tables, folder: Path) -> np.ndarray:
    """[A] bool: the annotations whose boxes can be trained on. DataError: the first broken thing."""
    _check_images_table(tables)
    _check_files(tables, folder)
    _check_references(tables)
    if (index := _first(~np.isfinite(tables.boxes_xywh).all(axis=1))) is not None:
        raise DataError(f"{tables.path}: {tables.name(index)} has a coordinate that is not a number; correct it")
    return _check_boxes(tables)


def _check_images_table(tables: Tables) -> None:
    ids, counts = np.unique(tables.image_ids, return_counts=True)
    if (index := _first(counts > 1)) is not None:
        names = [tables.file_names[row] for row in np.flatnonzero(tables.image_ids == ids[index])[:2]]
        raise DataError(f"{tables.path}: image id {ids[index]} is used by {' and '.join(names)}; give each its own")
    if (index := _first((tables.sizes_hw <= 0).any(axis=1))) is not None:
        raise DataError(f"{tables.path}: image {tables.file_names[index]} has no height or no width; correct it")


def _check_references(tables: Tables) -> None:
    if (lowest := min(tables.categories)) < 0:
        raise DataError(f"{tables.path}: category id {lowest} is negative; number the categories from 1")
    if (index := _first(tables.image_ids[tables.rows] != tables.owners)) is not None:
        what = f"annotation {tables.annotation_ids[index]} has image id {tables.owners[index]}"
        raise DataError(f"{tables.path}: {what}, which is not among the images; correct or remove it")
    if (index := _first(~np.isin(tables.labels, list(tables.categories)))) is not None:
        what = f"{tables.name(index)} has category id {tables.labels[index]}"
        raise DataError(f"{tables.path}: {what}, which is not among the categories; correct or remove it")


def _check_boxes(tables: Tables) -> np.ndarray:
    clamped = tables.clamped_xyxy()
    outside = (np.abs(clamped - tables.boxes_xyxy) > EDGE).any(axis=1)
    broken = np.asarray((clamped[:, 2:] <= clamped[:, :2]).any(axis=1) | outside)
    if (index := _first(broken)) is not None:
        count = f"{broken.sum()} of {len(broken)} annotations"
        what = f"{tables.path}: {tables.name(index)}: the box is empty or outside its image ({count})"
        if broken.sum() * TOLERATED >= len(broken):
            raise DataError(f"{what}; correct or remove it")
        warnings.warn(f"{what}; left out of training", stacklevel=4)
    return ~broken


def _check_files(tables: Tables, folder: Path) -> None:
    """Lists the folder once instead of calling stat for every image."""
    present = {
        os.path.join(parent, name)
        for parent in {os.path.dirname(name) for name in tables.file_names}
        if (folder / parent).is_dir()
        for name in os.listdir(folder / parent)
    }
    for name in tables.file_names:
        if name not in present:
            raise DataError(
                f"{folder / name}: no such image, but {tables.path.name} lists it; get the image or correct the list"
            )
    if len(tables.file_names) <= MOST_SIZES_READ:
        for path in (folder / name for name in tables.file_names):
            if not path.is_file() or path.stat().st_size == 0:
                raise DataError(f"{path}: the file is empty or a broken link; get it again")


def _first(mask: ArrayLike) -> int | None:
    places = np.flatnonzero(mask)
    return int(places[0]) if len(places) else None
