"""The annotations of one split, checked: what `CocoDataset` reads, whatever layout the data set has on disk."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fovea_detr.data.categories import Classes
from fovea_detr.data.tables import Tables, check_annotations
from fovea_detr.errors import DataError


@dataclass(frozen=True)
class CocoSplit:
    """The annotations of one split, checked. `labels` and `boxes_xyxy` are what is trained on, sorted by image: those
    of image i are at starts[i]:starts[i + 1]. Crowds and broken boxes are in `ground_truth()` only."""

    path: Path  # of the annotations, for messages
    folder: Path  # of the images
    image_ids: np.ndarray  # [N] int64
    file_names: list[str]  # relative to the folder
    sizes_hw: np.ndarray  # [N, 2] int64 pixels
    labels: np.ndarray  # [A] int64 outputs of the class head: the category ids, unless `classes` is compact
    boxes_xyxy: np.ndarray  # [A, 4] float32 pixels, clamped to the image
    starts: np.ndarray  # [N + 1] int64
    categories: dict[int, str]  # of this split
    classes: Classes  # of the data set, once `with_classes` has been told of the other split
    fingerprint: str  # of the annotations, 16 hex digits
    content: Callable[[], dict[str, Any]]  # reads COCO's dict again: too large to keep in memory

    @classmethod
    def of(
        cls, path: Path, folder: Path, content: Callable[[], dict[str, Any]], fingerprint: str | None = None
    ) -> CocoSplit:
        """Check the annotations that `content()` returns, in the format of COCO's instances_*.json.

        folder: of the images. fingerprint: None for one of the content itself. DataError: the first thing that is
        broken. Warns of single broken boxes, which are left out of training.
        """
        annotations = content()
        tables = Tables.parse(path, annotations)
        usable = check_annotations(tables, folder) & ~tables.is_crowd
        kept = np.flatnonzero(usable)
        kept = kept[np.argsort(tables.rows[kept], kind="stable")]
        classes = Classes.of(tables.categories)
        return cls(
            path=path,
            folder=folder,
            image_ids=tables.image_ids,
            file_names=tables.file_names,
            sizes_hw=tables.sizes_hw,
            labels=classes.outputs(tables.labels[kept]),
            boxes_xyxy=tables.clamped_xyxy()[kept].astype(np.float32),
            starts=np.searchsorted(tables.rows[kept], np.arange(len(tables.image_ids) + 1)),
            categories=tables.categories,
            classes=classes,
            fingerprint=fingerprint
            or hashlib.sha256(json.dumps(annotations, sort_keys=True).encode()).hexdigest()[:16],
            content=content,
        )

    @property
    def num_classes(self) -> int:
        """The highest category id + 1: a category's id is the index of its class output, so ids may have gaps."""
        return self.classes.number

    def with_classes(self, classes: Classes) -> CocoSplit:
        """The same annotations under the classes of the whole data set."""
        return replace(self, labels=classes.outputs(self.classes.category_ids(self.labels)), classes=classes)

    def ground_truth(self) -> dict[str, Any]:
        """COCO's dict for pycocotools, with `iscrowd`, `area` and `info` filled in, and unique names of categories.

        Annotations are numbered from 1: COCOeval takes an id of 0 for "no match".
        """
        content = self.content()
        for number, annotation in enumerate(content["annotations"], start=1):
            annotation["id"] = number
            annotation.setdefault("iscrowd", 0)
            annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        labels = self.classes.labels
        content["categories"] = [{"id": i, "name": labels[i]} for i in self.categories]
        content.setdefault("info", {})
        return content


def load_json(path: Path) -> Any:
    """Read with the cyclic garbage collector paused: it takes two thirds of the time on COCO's training annotations.

    DataError: the file is not JSON.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({first_line(error)}); get the annotations again") from error
    finally:
        if was_enabled:
            gc.enable()


def first_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
