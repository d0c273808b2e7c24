"""Where the files of a split are: named in the configuration, or found below data.root in one of the LAYOUTS.

A new layout of COCO's json and a folder of images is a line in LAYOUTS.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fovea_detr.config.local import NO_ROOT
from fovea_detr.config.schema import Data
from fovea_detr.data.holdout import Holdout, SplitName
from fovea_detr.errors import DataError
from fovea_detr.runs.paths import absolute_split_path
from fovea_detr.runs.provenance import file_fingerprint


class Files(NamedTuple):
    """Of one split, below the root. images: the last of these folders, or an earlier one if that exists."""

    annotations: str
    images: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.annotations} and {' or '.join(f'{folder}/' for folder in self.images)}"


class Layout(NamedTuple):
    name: str
    train: Files  # of a data set with one annotation file: all images
    val: Files | None = None

    def fits(self, root: Path) -> bool:
        return any((root / files.annotations).is_file() for files in (self.train, self.val) if files)

    def __str__(self) -> str:
        return f"{self.train}, {self.val}" if self.val else str(self.train)


LAYOUTS = (
    Layout(
        "COCO 2017",
        Files("annotations/instances_train2017.json", ("train2017",)),
        Files("annotations/instances_val2017.json", ("val2017",)),
    ),
    Layout(
        "Roboflow", Files("train/_annotations.coco.json", ("train",)), Files("valid/_annotations.coco.json", ("valid",))
    ),
    Layout("CVAT", Files("annotations/instances_default.json", ("images/default", "images"))),
    Layout(
        "CVAT, two subsets",
        Files("annotations/instances_Train.json", ("images/Train", "images")),
        Files("annotations/instances_Validation.json", ("images/Validation", "images")),
    ),
    Layout(
        "instances of train and val",
        Files("annotations/instances_train.json", ("train", "images/train", "images")),
        Files("annotations/instances_val.json", ("val", "images/val", "images")),
    ),
    Layout("Label Studio", Files("result.json", ("images",))),
)
NAME_THE_FILES = "data.train.annotations=, data.train.images= and the same for val"


@dataclass(frozen=True)
class Source:
    """The files of one split, which may not exist. holdout: None for all images of the annotation file."""

    layout: str
    annotations: Path
    images: Path
    advice: str  # what to do if a file does not exist
    holdout: Holdout | None = None

    def check(self) -> None:
        """DataError: the first folder or file that does not exist."""
        for wanted in (self.images.parent, self.images, self.annotations.parent, self.annotations):
            is_file = wanted is self.annotations
            if not (wanted.is_file() if is_file else wanted.is_dir()):
                raise DataError(f"{wanted}: no such {'file' if is_file else 'folder'}; {self.advice}")

    def fingerprint(self) -> str:
        """Of the annotation file, and of what is chosen from it: 16 hex digits. Nothing is parsed."""
        whole = cached_fingerprint(self.annotations)
        return hashlib.sha256(f"{whole} {self.holdout}".encode()).hexdigest()[:16] if self.holdout else whole

    def __str__(self) -> str:
        part = f" ({self.holdout})" if self.holdout else ""
        return f"{self.layout}, {self.annotations}, images in {self.images}{part}"


def cached_fingerprint(file: Path) -> str:
    """Of a file's content; read once for all points of a sweep."""
    return _fingerprint(file, file.stat().st_mtime_ns)


@cache
def _fingerprint(file: Path, _modified: int) -> str:
    return file_fingerprint(file)


def locate(data: Data, split: SplitName) -> Source:
    """The files of a split. DataError: nothing is named, and no layout fits below data.root, or several do."""
    if data.val_fraction == 0:
        return named_source(data, split) or found_source(data, split)
    holdout = Holdout(split, data.val_fraction, data.split_seed)
    return replace(named_source(data, "train") or undivided_source(data), holdout=holdout)


def named_source(data: Data, split: SplitName) -> Source | None:
    named = data.train if split == "train" else data.val
    if named.annotations is None or named.images is None:
        return None
    annotations, images = (Path(absolute_split_path(data, path)) for path in (named.annotations, named.images))
    return Source("named files", annotations, images, f"correct data.{split}.annotations or data.{split}.images")


def undivided_source(data: Data) -> Source:
    """The one annotation file below data.root, to be divided by data.val_fraction."""
    root, layout = detect(data)
    if layout.val and (root / layout.val.annotations).is_file():
        raise DataError(
            f"data.val_fraction={data.val_fraction}: {root} has a validation set, {layout.val}; remove "
            "data.val_fraction, or name the file to divide by data.train.annotations= and data.train.images="
        )
    return source_of(root, layout, layout.train)


def found_source(data: Data, split: SplitName) -> Source:
    root, layout = detect(data)
    if split == "val" and layout.val is None:
        raise DataError(
            f"{root}: {layout.name}'s layout has one annotation file, {layout.train.annotations}: set "
            "data.val_fraction=0.1 to validate on a tenth of its images, or name data.val.annotations= and "
            "data.val.images="
        )
    return source_of(root, layout, layout.val if split == "val" and layout.val else layout.train)


def source_of(root: Path, layout: Layout, files: Files) -> Source:
    folder = next((one for one in files.images if (root / one).is_dir()), files.images[-1])
    advice = f"data.root must name a folder that holds {layout}"
    if files is layout.val:
        advice += "; without a validation set, set data.val_fraction=0.1"
    return Source(layout.name, root / files.annotations, root / folder, advice)


def detect(data: Data) -> tuple[Path, Layout]:
    """data.root and its layout. DataError: none fits, or several do."""
    if data.root is None:
        raise DataError(f"{NO_ROOT}; or name the files of another data set by {NAME_THE_FILES}, or use data=shapes")
    root = Path(data.root).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; data.root must name the folder of a data set")
    fitting = [layout for layout in LAYOUTS if layout.fits(root)] or _single_json(root)
    if len(fitting) > 1:
        names = " and ".join(f"{one.name} ({one})" for one in fitting)
        raise DataError(
            f"{root}: holds data sets in {len(fitting)} layouts, {names}: remove all but one, or name the files by "
            f"{NAME_THE_FILES}"
        )
    if not fitting:
        raise DataError(
            f"{root}: no data set found; looked for {'; '.join(f'{one.name} ({one})' for one in LAYOUTS)}; a single "
            f"*.json and images/. Name other files by {NAME_THE_FILES}"
        )
    return root, fitting[0]


def _single_json(root: Path) -> list[Layout]:
    """An export that was renamed: the only json in the root, whatever its name, beside images/."""
    found = [path.name for path in root.glob("*.json") if not path.name.startswith(".")]
    is_alone = len(found) == 1 and (root / "images").is_dir()
    return [Layout("one json", Files(found[0], ("images",)))] if is_alone else []
