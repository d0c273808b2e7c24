"""The images of an annotation file as a table, and whether their files are there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fovea_detr.data.columns import Column, fields, integers
from fovea_detr.data.flaws import Fate, Flaws, first_line
from fovea_detr.data.headers import UNREADABLE, size_mismatch
from fovea_detr.errors import DataError

LONGEST_SIDE = 1 << 24  # pixels: float32 counts exactly up to here
# Images: in a larger split, an empty file, or one of another size, is only found when decoded. NFS is slow.
MOST_STATS, MOST_HEADERS = 10_000, 2_000


@dataclass(frozen=True)
class Images:
    """N images, in the order of the file."""

    ids: np.ndarray  # [N] int64
    file_names: list[str]
    sizes_hw: np.ndarray  # [N, 2] int64 pixels
    conflicts: np.ndarray  # int64 ids that different images share: none of them is in the table

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """[n] image ids -> their rows in this table, -1 where there is no such image."""
        if not len(self.ids):
            return np.full(len(ids), -1)
        order = np.argsort(self.ids)
        rows = order[np.searchsorted(self.ids, ids, sorter=order).clip(max=len(order) - 1)]
        return np.where(self.ids[rows] == ids, rows, -1)


def parse_images(entries: list[Any], own_ids: Column, flaws: Flaws) -> Images:
    """own_ids: of the entries, and which are valid. Lists flaws."""
    ids, valid = own_ids
    file_names = fields(entries, "file_name")
    named = np.array([isinstance(name, str) and bool(name) for name in file_names], bool)
    sides = [integers(fields(entries, key)) for key in ("height", "width")]
    sizes_hw = np.stack([values for values, _ in sides], axis=1)
    sized = np.logical_and.reduce([ok & (side >= 1) & (side <= LONGEST_SIDE) for side, ok in sides])
    sizes_hw[~sized] = LONGEST_SIDE  # clips no box, so that the run is refused for the size alone
    for kind, mask in (
        ("images without a usable id", valid),
        ("images without a file_name", named),
        (f"images without a height and width of 1 to {LONGEST_SIDE} pixels", sized),
    ):
        flaws.add(kind, Fate.REFUSED, np.flatnonzero(~mask), lambda i: file_names[i] or entries[i])
    kept = valid & named
    repeated, conflicts = _repeated(ids, kept, file_names, sizes_hw)
    flaws.add("images listed twice (once is enough)", Fate.KEPT, np.flatnonzero(repeated), file_names.__getitem__)
    shared = kept & np.isin(ids, conflicts)
    sharing = np.flatnonzero(shared)
    flaws.add("images that share an id", Fate.LEFT_OUT, sharing, lambda i: f"{file_names[i]} (id {ids[i]})")
    flaws.flawed_images = len(sharing)
    rows = np.flatnonzero(kept & ~repeated & ~shared)
    flaws.add("files without any usable image", Fate.REFUSED, [] if len(rows) else [flaws.path])
    return Images(ids[rows], [file_names[i] for i in rows], sizes_hw[rows], conflicts)


def _repeated(
    ids: np.ndarray, kept: np.ndarray, file_names: list[Any], sizes_hw: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """[N] bool: entries equal to an earlier one; and the ids that entries of different files or sizes share."""
    repeated, conflicts = np.zeros(len(ids), bool), set()
    values, counts = np.unique(ids[kept], return_counts=True)
    first: dict[int, Any] = {}
    for i in np.flatnonzero(kept & np.isin(ids, values[counts > 1])).tolist():
        image = (file_names[i], *sizes_hw[i].tolist())
        repeated[i] = int(ids[i]) in first
        if first.setdefault(int(ids[i]), image) != image:
            conflicts.add(int(ids[i]))
    return repeated & ~np.isin(ids, list(conflicts)), np.array(sorted(conflicts), np.int64)


def check_files(images: Images, folder: Path, flaws: Flaws) -> None:
    """Lists each folder once instead of calling stat for every image; reads the headers of a small split."""
    parts = [os.path.split(name) for name in images.file_names]
    present = {parent: listed(folder, parent) for parent in {parent for parent, _ in parts}}
    found = np.array([name in present[parent] for parent, name in parts], bool)
    flaws.add(
        f"image files that are not in {folder}", Fate.REFUSED, np.flatnonzero(~found), images.file_names.__getitem__
    )
    if len(parts) > MOST_STATS:
        return
    paths = {i: folder / images.file_names[i] for i in np.flatnonzero(found).tolist()}
    empty = [i for i, path in paths.items() if not path.is_file() or path.stat().st_size == 0]
    flaws.add("image files that are empty, or broken links", Fate.REFUSED, empty, lambda i: str(paths[i]))
    if len(parts) > MOST_HEADERS:
        return
    unreadable, others = [], []
    for i in paths.keys() - set(empty):
        try:
            mismatch = size_mismatch((int(images.sizes_hw[i, 0]), int(images.sizes_hw[i, 1])), paths[i])
            others += [mismatch] if mismatch and images.sizes_hw[i].max() < LONGEST_SIDE else []
        except UNREADABLE as error:
            unreadable.append(f"{paths[i]}: {first_line(error)}")
    flaws.add("files that are no images", Fate.REFUSED, unreadable)
    flaws.add("images of another size than annotated", Fate.REFUSED, others)


def listed(folder: Path, parent: str) -> set[str]:
    path = os.path.join(folder, parent)
    if not os.path.isdir(path):
        return set()
    try:
        return set(os.listdir(path))
    except OSError as error:
        raise DataError(f"{path}: the folder cannot be listed ({error.strerror})") from error
