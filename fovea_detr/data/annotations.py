"""The annotations of one split: what `CocoDataset` reads, whatever layout the data set has on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fovea_detr.data.categories import Classes
from fovea_detr.data.coco_json import collector_paused
from fovea_detr.data.flaws import Flaws
from fovea_detr.data.masks import MaskReader, Masks
from fovea_detr.data.object_table import Objects
from fovea_detr.data.panoptic import PanopticFiles
from fovea_detr.data.segmentations import Segmentations
from fovea_detr.data.tables import Tables


@dataclass(frozen=True)
class CocoSplit:
    """The annotations of one split, converted and checked. Those who train on it `refuse` its flaws first.

    `labels` and `boxes_xyxy` are what is trained on, sorted by image: those of image i are at starts[i]:starts[i + 1].
    `objects` is what is evaluated against: the same objects and the crowds, in the order of the file.
    """

    path: Path  # of the annotations, for messages
    folder: Path  # of the images
    image_ids: np.ndarray  # [N] int64
    file_names: list[str]  # relative to the folder
    sizes_hw: np.ndarray  # [N, 2] int64 pixels
    labels: np.ndarray  # [A] int64 outputs of the class head: the category ids, unless `classes` is compact
    boxes_xyxy: np.ndarray  # [A, 4] float32 pixels, clipped to the image
    starts: np.ndarray  # [N + 1] int64
    categories: dict[int, str]  # of this split
    classes: Classes  # of the data set, once `with_classes` has been told of the other split
    fingerprint: str  # of the annotations, 16 hex digits
    objects: Objects
    flaws: Flaws
    masks: Masks | None = None  # of A, if they are wanted
    panoptic: PanopticFiles | None = None  # where the objects are the segments of these
    truth: CocoSplit | None = None  # what boxes and masks are evaluated against, if it is not `objects`

    @classmethod
    def of(
        cls,
        path: Path,
        folder: Path,
        content: Callable[[], dict[str, Any]],
        fingerprint: str | None = None,
        masks: MaskReader | None = None,
        *,
        with_crowds: bool = False,
    ) -> CocoSplit:
        """Convert the annotations that `content()` returns, in the format of COCO's instances_*.json.

        `content` is called once, and what it returns is not kept. folder: of the images. fingerprint: None for one of
        the content itself. masks: reads those of the objects. with_crowds: train on them, too. DataError: not in this
        format at all; every other flaw is listed in `flaws`.
        """
        with collector_paused():
            annotations = content()
            tables = Tables.parse(path, folder, annotations, masks)
            fingerprint = fingerprint or hash_of(annotations)
            del annotations
        images, objects, classes = tables.images, tables.objects, Classes.of(tables.categories)
        trained = np.flatnonzero(~objects.is_crowd | with_crowds)
        trained = trained[np.argsort(objects.rows[trained], kind="stable")]
        return cls(
            path=path,
            folder=folder,
            image_ids=images.ids,
            file_names=images.file_names,
            sizes_hw=images.sizes_hw,
            labels=classes.outputs(objects.labels[trained]),
            boxes_xyxy=objects.boxes_xyxy[trained],
            starts=np.searchsorted(objects.rows[trained], np.arange(len(images.ids) + 1)),
            categories=tables.categories,
            classes=classes,
            fingerprint=fingerprint,
            objects=objects,
            flaws=tables.flaws,
            masks=None if objects.masks is None else objects.masks[trained],
        )

    @property
    def num_classes(self) -> int:
        """The highest category id + 1: a category's id is the index of its class output, so ids may have gaps."""
        return self.classes.number

    @property
    def ids_by_file(self) -> dict[str, int]:
        """The image ids by file name."""
        return dict(zip(self.file_names, self.image_ids.tolist(), strict=True))

    def with_classes(self, classes: Classes) -> CocoSplit:
        """The same annotations under the classes of the whole data set."""
        return replace(self, labels=classes.outputs(self.classes.category_ids(self.labels)), classes=classes)

    def first(self, number: int) -> CocoSplit:
        """The first images of the file, or all if there are fewer, with their objects; same classes and fingerprint."""
        kept, end = self.objects.rows < number, int(self.starts[min(number, len(self.image_ids))])
        return replace(
            self,
            image_ids=self.image_ids[:number],
            file_names=self.file_names[:number],
            sizes_hw=self.sizes_hw[:number],
            labels=self.labels[:end],
            boxes_xyxy=self.boxes_xyxy[:end],
            starts=self.starts[: number + 1],
            objects=self.objects[kept],
            masks=None if self.masks is None else self.masks[:end],
        )

    def ground_truth(self) -> dict[str, Any]:
        """COCO's dict for COCOeval, with the boxes, areas and masks of the file. Annotations are numbered from 1."""
        if self.truth is not None:
            return _of_images(self.truth.ground_truth(), self.image_ids.tolist())
        table = self.objects
        columns = (self.image_ids[table.rows], table.labels, table.boxes_xywh, table.areas, table.is_crowd.astype(int))
        keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
        rows = zip(range(1, len(table.rows) + 1), *(column.tolist() for column in columns), strict=True)
        return {
            "info": {},
            "images": [{"id": i} for i in self.image_ids.tolist()],
            "annotations": _with_rles([dict(zip(keys, row, strict=True)) for row in rows], table.masks),
            "categories": [{"id": i, "name": self.classes.labels[i]} for i in self.categories],
        }

    def warnings(self, num_queries: int) -> Iterator[str]:
        """What to know before the first step, a line each. num_queries: of the model."""
        yield from (f"{self.path.name}: {flaw}" for flaw in self.flaws.found)
        if not len(self.objects.rows):
            yield f"{self.path.name}: no objects: nothing can be learned from it, and every metric on it is -1"
        counts = np.diff(self.starts)
        if (most := int(counts.max(initial=0))) > num_queries:
            yield (
                f"{self.path.name}: {int((counts > num_queries).sum())} of {len(counts)} images hold more objects than "
                f"model.num_queries={num_queries}; the most are {most}, in {self.file_names[int(counts.argmax())]}: "
                f"the rest cannot be found: set model.num_queries={most} or more"
            )


def _with_rles(annotations: list[dict[str, Any]], masks: Masks | None) -> list[dict[str, Any]]:
    if not isinstance(masks, Segmentations):
        return annotations
    return [{**one, "segmentation": rle} for one, rle in zip(annotations, masks.rles(), strict=True)]


def _of_images(content: dict[str, Any], image_ids: list[int]) -> dict[str, Any]:
    """The ground truth of these images; those that it does not list hold no object."""
    wanted = set(image_ids)
    annotations = [one for one in content["annotations"] if one["image_id"] in wanted]
    return {**content, "images": [{"id": i} for i in image_ids], "annotations": annotations}


def hash_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
