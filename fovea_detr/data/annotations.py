"""The annotations of a data set in COCO 2017's layout: found, parsed and checked."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fovea_detr.errors import DataError

Split = Literal["train", "val"]
LAYOUT = "annotations/instances_{train,val}2017.json, train2017/ and val2017/"
EDGE = 1.0  # pixels a box may lie outside its image (rounding); it is clamped
FORGIVEN = 10_000  # fewer than one annotation in so many may have a broken box, as in COCO itself: left out of training
MOST_SIZES_READ = 10_000  # images; an empty file in a larger split is found when it is decoded: stats are slow on NFS


@dataclass(frozen=True)
class CocoSplit:
    """The annotations of one split, checked. `labels` and `boxes_xyxy` hold what is trained on, sorted by image:
    those of image i are at starts[i]:starts[i + 1]. Crowds and broken boxes are in `ground_truth()` only."""

    path: Path  # of the annotation file
    folder: Path  # of the images
    image_ids: np.ndarray  # [N] int64
    file_names: list[str]
    sizes_hw: np.ndarray  # [N, 2] int64 pixels
    labels: np.ndarray  # [A] int64 category ids
    boxes_xyxy: np.ndarray  # [A, 4] float32 pixels, clamped to the image
    starts: np.ndarray  # [N + 1] int64
    categories: dict[int, str]
    fingerprint: str  # of the annotation file's content, 16 hex digits

    @property
    def num_classes(self) -> int:
        """The highest category id + 1: a class output's number is its category's id, so ids may have gaps."""
        return max(self.categories) + 1

    def ground_truth(self) -> dict[str, Any]:
        """The file's content for pycocotools with `iscrowd`, `area` and `info` filled in; nothing on disk is changed.

        Annotations are numbered from 1: COCOeval takes an id of 0 for "no match".
        """
        content = _loads(self.path.read_bytes())
        for number, annotation in enumerate(content["annotations"], start=1):
            annotation["id"] = number
            annotation.setdefault("iscrowd", 0)
            annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        content.setdefault("info", {})
        return content


def check_layout(root: Path | str | None, splits: Sequence[Split] = ("train", "val")) -> Path:
    """The root, once its folders and annotation files are there. DataError: the first that is missing."""
    if root is None:
        raise DataError(f"data.root is not set: give the folder that holds {LAYOUT}, or take data=shapes")
    root = Path(root).expanduser()
    wanted = [root, *(root / f"{split}2017" for split in splits), root / "annotations"]
    wanted += [_annotation_path(root, split) for split in splits]
    for path in wanted:
        if not (path.is_file() if path.suffix == ".json" else path.is_dir()):
            kind = "file" if path.suffix == ".json" else "folder"
            raise DataError(f"{path}: no such {kind}; data.root must name a folder that holds {LAYOUT}")
    return root


def _annotation_path(root: Path, split: Split) -> Path:
    return root / "annotations" / f"instances_{split}2017.json"


def read_split(root: Path | str, split: Split) -> CocoSplit:
    """Parse and check one split. DataError: the first broken thing. Warns of broken boxes left out of training."""
    root = check_layout(root, (split,))
    path, folder = _annotation_path(root, split), root / f"{split}2017"
    raw = path.read_bytes()
    tables = Tables.parse(path, raw)
    usable = check_annotations(tables, folder) & ~tables.is_crowd
    kept = np.flatnonzero(usable)
    kept = kept[np.argsort(tables.rows[kept], kind="stable")]
    return CocoSplit(
        path=path,
        folder=folder,
        image_ids=tables.image_ids,
        file_names=tables.file_names,
        sizes_hw=tables.sizes_hw,
        labels=tables.labels[kept],
        boxes_xyxy=tables.clamped_xyxy()[kept].astype(np.float32),
        starts=np.searchsorted(tables.rows[kept], np.arange(len(tables.image_ids) + 1)),
        categories=tables.categories,
        fingerprint=hashlib.sha256(raw).hexdigest()[:16],
    )


@dataclass(frozen=True)
class Tables:
    """An annotation file as arrays of N images and A annotations, not yet checked."""

    path: Path
    image_ids: np.ndarray  # [N] int64
    file_names: list[str]
    sizes_hw: np.ndarray  # [N, 2] int64
    categories: dict[int, str]
    annotation_ids: list[Any]  # [A]; only named in messages
    owners: np.ndarray  # [A] int64 image ids
    labels: np.ndarray  # [A] int64
    boxes_xywh: np.ndarray  # [A, 4] float64
    is_crowd: np.ndarray  # [A] bool

    @classmethod
    def parse(cls, path: Path, raw: bytes) -> Tables:
        """DataError: not JSON, a table or a field missing, or a field that is no number."""
        images, annotations, categories = _parsed(path, raw)
        category_ids = _column(path, "category", categories, "id", np.int64).tolist()
        return cls(
            path=path,
            image_ids=_column(path, "image", images, "id", np.int64),
            file_names=[str(name) for name in _column(path, "image", images, "file_name", np.object_)],
            sizes_hw=np.stack([_column(path, "image", images, k, np.int64) for k in ("height", "width")], axis=1),
            categories={i: str(entry.get("name", i)) for i, entry in zip(category_ids, categories, strict=True)},
            owners=_column(path, "annotation", annotations, "image_id", np.int64),
            annotation_ids=[entry.get("id", "without id") for entry in annotations],
            labels=_column(path, "annotation", annotations, "category_id", np.int64),
            boxes_xywh=_column(path, "annotation", annotations, "bbox", np.float64, (4,)),
            is_crowd=np.array([bool(entry.get("iscrowd")) for entry in annotations], dtype=bool),
        )

    @cached_property
    def rows(self) -> np.ndarray:
        """[A] the place of each annotation's image in the image table; any place where there is no such image."""
        order = np.argsort(self.image_ids)
        return order[np.searchsorted(self.image_ids, self.owners, sorter=order).clip(max=len(order) - 1)]

    @property
    def boxes_xyxy(self) -> np.ndarray:
        return np.concatenate([self.boxes_xywh[:, :2], self.boxes_xywh[:, :2] + self.boxes_xywh[:, 2:]], axis=1)

    def clamped_xyxy(self) -> np.ndarray:
        limits = np.tile(self.sizes_hw[self.rows][:, ::-1], 2)
        return self.boxes_xyxy.clip(0, limits)

    def name(self, index: int) -> str:
        """An annotation as messages name it."""
        image = self.file_names[self.rows[index]]
        return f"annotation {self.annotation_ids[index]} (image {image}, box {self.boxes_xywh[index].tolist()})"


def _parsed(path: Path, raw: bytes) -> tuple[list[Any], list[Any], list[Any]]:
    try:
        content = _loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({first_line(error)}); get the annotations again") from error
    tables = [content.get(k) if isinstance(content, dict) else None for k in ("images", "annotations", "categories")]
    for key, table in zip(("images", "annotations", "categories"), tables, strict=True):
        if not isinstance(table, list) or (not table and key != "annotations"):
            raise DataError(f"{path}: holds no {key}; data.root needs COCO's instances_*.json (object detection)")
    return tables[0], tables[1], tables[2]  # pyright: ignore[reportReturnType]


def _loads(raw: bytes) -> Any:
    """JSON read with the cyclic collector paused: it takes two thirds of the time on COCO's training annotations."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return json.loads(raw)
    finally:
        if was_enabled:
            gc.enable()


def _column(
    path: Path, kind: str, entries: list[Any], key: str, dtype: type, shape: tuple[int, ...] = ()
) -> np.ndarray:
    """[len(entries), *shape] of one field. DataError: names the first entry that lacks it or holds something else."""
    column = _converted(entries, key, dtype)
    if not entries:
        return np.zeros((0, *shape), dtype)
    if column is not None and column.shape == (len(entries), *shape):
        return column
    for entry in entries:
        field = _converted([entry], key, dtype)
        if field is None or field.shape != (1, *shape):
            raise DataError(f"{path}: {kind} {str(entry)[:120]}: '{key}' is missing or broken; correct it")
    raise AssertionError(f"{kind} {key}: every entry fits, their table does not")


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
        raise DataError(f"{tables.path}: image id {ids[index]} is that of {' and '.join(names)}; give each its own")
    if (index := _first((tables.sizes_hw <= 0).any(axis=1))) is not None:
        raise DataError(f"{tables.path}: image {tables.file_names[index]} has no height or no width; correct it")


def _check_references(tables: Tables) -> None:
    if (lowest := min(tables.categories)) < 0:
        raise DataError(f"{tables.path}: category id {lowest} is negative; number the categories from 1")
    if (index := _first(tables.image_ids[tables.rows] != tables.owners)) is not None:
        what = f"annotation {tables.annotation_ids[index]} is of image id {tables.owners[index]}"
        raise DataError(f"{tables.path}: {what}, which is not among the images; correct or remove it")
    if (index := _first(~np.isin(tables.labels, list(tables.categories)))) is not None:
        what = f"{tables.name(index)} is of category id {tables.labels[index]}"
        raise DataError(f"{tables.path}: {what}, which is not among the categories; correct or remove it")


def _check_boxes(tables: Tables) -> np.ndarray:
    clamped = tables.clamped_xyxy()
    outside = (np.abs(clamped - tables.boxes_xyxy) > EDGE).any(axis=1)
    broken = np.asarray((clamped[:, 2:] <= clamped[:, :2]).any(axis=1) | outside)
    if (index := _first(broken)) is not None:
        count = f"{broken.sum()} such of {len(broken)} annotations"
        what = f"{tables.path}: {tables.name(index)}: the box is empty or outside its image ({count})"
        if broken.sum() * FORGIVEN >= len(broken):
            raise DataError(f"{what}; correct or remove it")
        warnings.warn(f"{what}; left out of training", stacklevel=4)
    return ~broken


def _check_files(tables: Tables, folder: Path) -> None:
    """One listing of the folder instead of a stat an image."""
    present = {
        os.path.join(parent, name)
        for parent in {os.path.dirname(name) for name in tables.file_names}
        if (folder / parent).is_dir()
        for name in os.listdir(folder / parent)
    }
    for name in tables.file_names:
        if name not in present:
            raise DataError(
                f"{folder / name}: no such image, but {tables.path.name} lists it; get it, or correct the list"
            )
    if len(tables.file_names) <= MOST_SIZES_READ:
        for path in (folder / name for name in tables.file_names):
            if not path.is_file() or path.stat().st_size == 0:
                raise DataError(f"{path}: the file is empty or a broken link; get it again")


def _first(mask: ArrayLike) -> int | None:
    places = np.flatnonzero(mask)
    return int(places[0]) if len(places) else None


def first_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
