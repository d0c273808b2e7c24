"""The objects of an annotation file as a table, clipped to their images; the flawed ones are listed and left out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fovea_detr.data.columns import Column, fields, flags, integers, numbers, quadruples
from fovea_detr.data.flaws import Fate, Flaws, shown
from fovea_detr.data.image_table import Images
from fovea_detr.data.masks import MaskReader, Masks

ROUNDING = 1.0  # pixels by which a box may reach out of its image without being listed; it is clipped
KEPT_SHARE = 0.9  # of its area; a box of which clipping leaves no more than this counts as flawed
LARGEST_AREA = 1e10  # pixels: COCOeval ignores larger objects


@dataclass(frozen=True)
class Objects:
    """The A objects that are kept, crowds included, in the order of the file."""

    rows: np.ndarray  # [A] int64, of their images
    labels: np.ndarray  # [A] int64 category ids
    boxes_xywh: np.ndarray  # [A, 4] float64 pixels, as in the file: what COCOeval compares with
    boxes_xyxy: np.ndarray  # [A, 4] float32 pixels, clipped to the image: what is trained on
    areas: np.ndarray  # [A] float64 pixels, as in the file; of the box where the file has none
    is_crowd: np.ndarray  # [A] bool
    masks: Masks | None = None  # of A, if they are wanted

    def __getitem__(self, rows: np.ndarray) -> Objects:
        columns: dict[str, Any] = vars(self)
        chosen: dict[str, Any] = {name: None if one is None else one[rows] for name, one in columns.items()}
        return Objects(**chosen)


@dataclass
class ObjectParser:
    """Sorts every annotation into the first kind of flaw that it has, or into none. owners: image ids, and validity."""

    entries: list[Any]
    owners: Column
    images: Images
    flaws: Flaws
    mask_reader: MaskReader | None = None
    rows: np.ndarray = field(init=False)  # [A] of the images; -1: unknown

    def parse(self, categories: dict[int, str]) -> Objects:
        owners, has_owner = self.owners
        self.rows = np.where(has_owner, self.images.rows(owners), -1)
        labels, has_label = integers(fields(self.entries, "category_id"))
        boxes, has_box, has_numbers = quadruples(fields(self.entries, "bbox"))
        is_crowd, has_flag = flags(fields(self.entries, "iscrowd"))
        bad = np.zeros(len(self.entries), bool)
        for kind, mask in (
            ("annotations that are not JSON objects", [not isinstance(entry, dict) for entry in self.entries]),
            ("objects of images that share an id", has_owner & np.isin(owners, self.images.conflicts)),
            ("objects of an image that is not listed", self.rows < 0),
            ("objects of a category that is not listed", ~has_label | ~np.isin(labels, list(categories))),
            ("objects without a box of four numbers", ~has_box),
            ("boxes with a coordinate that is not a finite number", ~has_numbers),
            ("objects whose iscrowd is not a number", ~has_flag),
        ):
            bad |= self._list(kind, np.asarray(mask, bool) & ~bad)
        kept = np.flatnonzero(~bad)
        clipped, areas, is_empty = self._clip(boxes[kept], kept)
        kept, clipped, areas = (column[~is_empty] for column in (kept, clipped, areas))
        areas = self._areas(kept, areas)
        objects = Objects(self.rows[kept], labels[kept], boxes[kept], clipped, areas, is_crowd[kept])
        return objects if self.mask_reader is None else self._with_masks(objects, kept, self.mask_reader)

    def _with_masks(self, objects: Objects, kept: np.ndarray, read: MaskReader) -> Objects:
        """With their masks; those without a usable one are listed and left out."""
        masks = read([self.entries[i] for i in kept], objects.rows, self.images, self.flaws)
        found = np.array(masks.flaws(), str)
        for kind in np.unique(found[found != ""]).tolist():
            everywhere = np.zeros(len(self.entries), bool)
            everywhere[kept] = found == kind
            self._list(kind, everywhere)
        return replace(objects, masks=masks)[np.flatnonzero(found == "")]

    def _list(self, kind: str, mask: np.ndarray, fate: Fate = Fate.LEFT_OUT) -> np.ndarray:
        self.flaws.add(kind, fate, np.flatnonzero(mask), self.name)
        self.flaws.flawed_objects += int(mask.sum()) if fate is not Fate.KEPT else 0
        return mask

    @np.errstate(over="ignore")
    def _clip(self, boxes_xywh: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[n, 4] float32 boxes clipped to their images, [n] float64 areas, [n] bool the empty ones. Lists flaws."""
        corners = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)
        exact = corners.clip(0, np.tile(self.images.sizes_hw[self.rows[kept]][:, ::-1], 2))
        clipped = exact.astype(np.float32)
        is_empty = np.asarray((clipped[:, 2:] <= clipped[:, :2]).any(axis=1))
        has_area = (boxes_xywh[:, 2:] > 0).all(axis=1)
        outside = (np.abs(exact - corners) > ROUNDING).any(axis=1) & ~is_empty
        whole, inside = boxes_xywh[:, 2:].prod(axis=1), (exact[:, 2:] - exact[:, :2]).prod(axis=1)
        far = outside & (inside <= KEPT_SHARE * whole)
        for kind, mask, fate in (
            ("empty boxes", is_empty & ~has_area, Fate.LEFT_OUT),
            ("boxes outside their image", is_empty & has_area, Fate.LEFT_OUT),
            ("boxes of which a tenth or more is outside their image", far, Fate.CLIPPED),
            ("boxes partly outside their image (clipped)", outside & ~far, Fate.KEPT),
        ):
            everywhere = np.zeros(len(self.entries), bool)
            everywhere[kept] = mask
            self._list(kind, everywhere, fate)
        return clipped, np.where(outside, inside, whole), is_empty

    def _areas(self, kept: np.ndarray, of_boxes: np.ndarray) -> np.ndarray:
        """[n] the file's areas, or those of the boxes where it has none that COCOeval can use."""
        values = fields([self.entries[i] for i in kept], "area")
        areas, valid = numbers(values)
        valid &= (areas > 0) & (areas <= LARGEST_AREA)  # with 0, every object would be small
        given = np.array([value is not None for value in values], bool)
        kind = "areas that are no usable number (the box's is taken)"
        self.flaws.add(kind, Fate.KEPT, kept[given & ~valid], self.name)
        return np.where(valid, areas, of_boxes)

    def name(self, index: int) -> str:
        """How a message names an annotation."""
        entry, row = self.entries[index], self.rows[index]
        if not isinstance(entry, dict):
            return shown(entry)
        image = self.images.file_names[row] if row >= 0 else f"id {entry.get('image_id')}"
        box, category = shown(entry.get("bbox")), shown(entry.get("category_id"))
        return f"annotation {entry.get('id', 'without id')} (image {image}, box {box}, category {category})"
