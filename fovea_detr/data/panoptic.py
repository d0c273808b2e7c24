"""Panoptic annotations in COCO's format: a json of segments and a folder of PNGs whose colours are their ids."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fovea_detr.data.columns import fields, integers
from fovea_detr.data.flaws import Fate, Flaws, first_line
from fovea_detr.data.headers import UNREADABLE
from fovea_detr.data.image_table import MOST_HEADERS, Images, listed
from fovea_detr.data.masks import MaskReader
from fovea_detr.errors import DataError

PNG_SIZE = "panoptic PNGs of another size than their image"


@dataclass(frozen=True)
class PanopticFiles:
    """The panoptic annotations of one split. png_folder: of the PNGs."""

    annotations: Path
    png_folder: Path

    def check(self) -> None:
        """DataError: the first folder or file that does not exist."""
        for path, exists in ((self.annotations, Path.is_file), (self.png_folder, Path.is_dir)):
            if not exists(path):
                raise DataError(f"{path}: not there; data.panoptic_root must name a folder that holds it")

    def content(self) -> dict[str, Any]:
        """DataError: no JSON, or not in this format."""
        try:
            content = json.loads(self.annotations.read_bytes())
        except ValueError as error:
            raise DataError(f"{self.annotations}: not JSON ({first_line(error)}); get the annotations again") from error
        images = content.get("annotations") if isinstance(content, dict) else None
        if not isinstance(images, list) or not all(
            isinstance(one, dict) and isinstance(one.get("segments_info"), list) for one in images
        ):
            raise DataError(f"{self.annotations}: holds no segments_info; it must have COCO's panoptic format")
        return content


def as_objects(content: dict[str, Any]) -> dict[str, Any]:
    """Panoptic annotations as instances, an object for each segment. `bbox` is the whole image's: the segments' boxes
    come from their masks.
    """
    images = [one for one in content.get("images", []) if isinstance(one, dict)]
    sizes = {one.get("id"): [0, 0, one.get("width"), one.get("height")] for one in images}
    segments = [
        {**segment, "image_id": one.get("image_id"), "bbox": sizes.get(one.get("image_id"))}
        if isinstance(segment, dict)
        else segment
        for one in content["annotations"]
        for segment in one["segments_info"]
    ]
    return {**content, "annotations": segments}


@dataclass(frozen=True)
class Pngs:
    """The masks of A segments. An index selects segments, as in numpy. files: of N images; owners: [A], their places.

    ids: [A] the segments' own. known: the ids of all segments of each file that the json lists.
    """

    folder: Path
    files: Sequence[str]
    known: Sequence[np.ndarray]
    owners: np.ndarray
    ids: np.ndarray
    are_kept: bool = True
    give_boxes = True

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: np.ndarray | slice) -> Pngs:
        return replace(self, owners=self.owners[rows], ids=self.ids[rows])

    def flaws(self) -> list[str]:
        return ["segments without an id of 1 to 2^24 - 1" if not 0 < i < 1 << 24 else "" for i in self.ids.tolist()]

    def drawn(self, size_hw: tuple[int, int]) -> np.ndarray:
        """[A, h, w] bool, of the segments of one image of this size. DataError: the PNG does not fit."""
        if not len(self):
            return np.zeros((0, *size_hw), bool)
        file = int(self.owners[0])
        path = self.folder / self.files[file]
        ids = read_ids(path)
        if ids.shape != size_hw:
            raise DataError(f"{path}: {_sizes(ids.shape, size_hw)}; get the panoptic annotations again")
        if wrong := _mismatch(ids, self.known[file]):
            raise DataError(f"{path}: {wrong}; get the panoptic annotations again")
        return ids == self.ids[:, None, None].astype(np.uint32)


def read_ids(path: Path) -> np.ndarray:
    """[h, w] uint32: R + 256 G + 65536 B. DataError: it cannot be read."""
    try:
        with Image.open(path) as image:
            red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), np.uint32), -1, 0)
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as a PNG ({first_line(error)}); get it again") from error
    return red + 256 * green + 65536 * blue


def as_png(ids: np.ndarray) -> Image.Image:
    """[h, w] ids below 2^24 -> the picture that `read_ids` reads."""
    return Image.fromarray(np.stack([ids, ids >> 8, ids >> 16], axis=-1).astype(np.uint8))


def inclusive_boxes(masks: np.ndarray) -> np.ndarray:
    """[T, h, w] bool -> [T, 4] float32 (left, top, right, bottom): the first and the last column and row, as published.

    So a mask of one pixel has a box without area. Every mask has a pixel.
    """
    columns, rows = np.asarray(masks.any(axis=1)), np.asarray(masks.any(axis=2))
    low = [found.argmax(axis=1) for found in (columns, rows)]
    high = [found.shape[1] - 1 - found[:, ::-1].argmax(axis=1) for found in (columns, rows)]
    return np.stack([*low, *high], axis=1).astype(np.float32)


class PngReader:
    """The PNGs of one split: finds the flaws of the files, then makes the `Pngs` of its objects."""

    def __init__(self, files: PanopticFiles, content: dict[str, Any], image_ids: np.ndarray) -> None:
        annotations = content["annotations"]
        owners, valid = integers(fields(annotations, "image_id"))
        of_image = {owner: i for i, owner in enumerate(owners.tolist()) if valid[i]}
        places = [of_image.get(i) for i in image_ids.tolist()]
        mine = [{} if place is None else annotations[place] for place in places]
        self.folder, self.missing = files.png_folder, np.array([place is None for place in places], bool)
        self.names = [str(one.get("file_name")) for one in mine]
        self.known = [integers(fields(one.get("segments_info", []), "id"))[0] for one in mine]
        counts = Counter(owners[valid].tolist())
        self.twice = {
            "images with several panoptic annotations": [counts[i] > 1 for i in image_ids.tolist()],
            "images with two segments of one id": [len(set(ids.tolist())) < len(ids) for ids in self.known],
        }

    def check(self, sizes_hw: np.ndarray, image_names: Sequence[str], flaws: Flaws) -> None:
        """List what is wrong with the files; what they hold, of a small split. Of a large one it is found when read."""
        kind = f"images without panoptic annotations in {flaws.path.name}"
        flaws.add(kind, Fate.REFUSED, [name for name, lost in zip(image_names, self.missing, strict=True) if lost])
        for kind, places in self.twice.items():
            flaws.add(kind, Fate.REFUSED, np.flatnonzero(places), image_names.__getitem__)
        present = listed(self.folder, "")
        lost = [name for name, no in zip(self.names, self.missing, strict=True) if not no and name not in present]
        flaws.add(f"panoptic PNGs that are not in {self.folder}", Fate.REFUSED, lost)
        readable = [i for i, no in enumerate(self.missing) if not no and self.names[i] in present]
        if len(readable) > MOST_HEADERS:
            return
        found: dict[str, list[str]] = {}
        for i in readable:
            for kind, example in self._wrong(i, (int(sizes_hw[i, 0]), int(sizes_hw[i, 1]))):
                found.setdefault(kind, []).append(example)
        for kind, examples in found.items():
            flaws.add(kind, Fate.REFUSED, examples)

    def _wrong(self, file: int, size_hw: tuple[int, int]) -> list[tuple[str, str]]:
        """What is wrong with one PNG: kinds, each with its example."""
        path = self.folder / self.names[file]
        try:
            ids = read_ids(path)
        except DataError as error:
            return [("panoptic PNGs that cannot be read", str(error))]
        if ids.shape != size_hw:
            return [(PNG_SIZE, f"{path}: {_sizes(ids.shape, size_hw)}")]
        wrong = _mismatch(ids, self.known[file])
        return [("panoptic PNGs whose segments are not those of the json", f"{path}: {wrong}")] if wrong else []

    def of(self, owners: np.ndarray, ids: np.ndarray, *, with_masks: bool) -> Pngs:
        """owners: [A] the rows of the segments' images."""
        return Pngs(self.folder, self.names, self.known, owners, ids, with_masks)


def png_reader(files: PanopticFiles, content: dict[str, Any], *, with_masks: bool) -> MaskReader:
    """content: of the files."""

    def read(entries: list[Any], rows: np.ndarray, images: Images, flaws: Flaws) -> Pngs:
        reader = PngReader(files, content, images.ids)
        reader.check(images.sizes_hw, images.file_names, flaws)
        return reader.of(rows, integers(fields(entries, "id"))[0], with_masks=with_masks)

    return read


def _sizes(found_hw: Sequence[int], wanted_hw: Sequence[int]) -> str:
    return f"{found_hw[1]} x {found_hw[0]} pixels, but its image has {wanted_hw[1]} x {wanted_hw[0]}"


def _mismatch(ids: np.ndarray, known: np.ndarray) -> str:
    """Where the ids of a PNG and those of the json differ: one phrase, empty where they agree."""
    drawn = np.unique(ids)
    missing, unused = np.setdiff1d(drawn[drawn > 0], known), np.setdiff1d(known, drawn)
    parts = [f"segment {missing[0]} is missing from the json"] if len(missing) else []
    return ", ".join(parts + ([f"segment {unused[0]} of the json is not in the PNG"] if len(unused) else []))
