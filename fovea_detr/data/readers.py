"""The layouts of data sets that `data.name` may name: a function for each reads one split.

A new layout needs a function and a line in READERS, and a file of that name in conf/data/. The function builds the
content of COCO's instances_*.json from its own files and returns `CocoSplit.of(path, folder, content)`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Literal, get_args

from fovea_detr.config.local import NO_ROOT
from fovea_detr.config.schema import Data
from fovea_detr.data.annotations import CocoSplit, load_json
from fovea_detr.data.shapes.generate import generate
from fovea_detr.errors import DataError
from fovea_detr.runs.provenance import file_fingerprint

SplitName = Literal["train", "val"]
LAYOUT = "annotations/instances_{train,val}2017.json, train2017/ and val2017/"


def read_coco(root: Path | str, split: SplitName) -> CocoSplit:
    """A split of a data set in COCO 2017's layout. DataError: a folder or file is missing, or the content is broken."""
    root, path = Path(root).expanduser(), annotation_file(root, split)
    folder = root / f"{split}2017"
    for wanted in (root, folder, path.parent, path):
        if not (wanted.is_file() if wanted is path else wanted.is_dir()):
            kind = "file" if wanted is path else "folder"
            raise DataError(f"{wanted}: no such {kind}; data.root must name a folder that holds {LAYOUT}")
    return CocoSplit.of(path, folder, partial(load_json, path), _fingerprint(path, path.stat().st_mtime_ns))


def annotation_file(root: Path | str, split: SplitName) -> Path:
    return Path(root).expanduser() / "annotations" / f"instances_{split}2017.json"


def fingerprints(data: Data) -> dict[str, str]:
    """Of the annotation files below data.root, by split, without parsing them; only those that are visible here."""
    if data.root is None:  # nothing, or generated from the configuration
        return {}
    files = {split: annotation_file(data.root, split) for split in get_args(SplitName)}
    return {split: _fingerprint(file, file.stat().st_mtime_ns) for split, file in files.items() if file.is_file()}


@cache
def _fingerprint(file: Path, _modified: int) -> str:
    """Of a file's content, read once for all points of a sweep."""
    return file_fingerprint(file)


def coco(data: Data, split: SplitName) -> CocoSplit:
    if data.root is None:
        raise DataError(f"{NO_ROOT}; or use data=shapes")
    return read_coco(data.root, split)


def shapes(data: Data, split: SplitName) -> CocoSplit:
    return read_coco(generate(Path(data.cache), data.train_images, data.val_images), split)


READERS: dict[str, Callable[[Data, SplitName], CocoSplit]] = {"coco": coco, "shapes": shapes}
