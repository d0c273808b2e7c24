"""The readers that `data.name` may name: a function for each reads one split.

A new format needs a function and a line in READERS, and a file of that name in conf/data/ (and in GENERATED,
config/schema.py, if it reads no files). The function builds the content of COCO's instances_*.json from its own files
and returns `CocoSplit.of(path, folder, content)`. Other places of COCO's json and its images: layouts.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, get_args

from fovea_detr.config.schema import Data
from fovea_detr.data.annotations import CocoSplit
from fovea_detr.data.coco_json import load_coco
from fovea_detr.data.file_names import resolve_names
from fovea_detr.data.holdout import SplitName
from fovea_detr.data.layouts import LAYOUTS, Source, locate, source_of
from fovea_detr.data.parsed import once_parsed
from fovea_detr.data.shapes.generate import generate
from fovea_detr.errors import DataError


def read(source: Source) -> CocoSplit:
    """A split in COCO's format. DataError: a folder or file is missing, or the content is broken."""
    source.check()
    return CocoSplit.of(source.annotations, source.images, partial(content_of, source), source.fingerprint())


def content_of(source: Source) -> Any:
    """COCO's dict of a split, the names of images resolved: in the whole file, so that no file is on both sides."""
    content = load_coco(source.annotations)
    chosen = source.holdout.select(source.annotations, content) if source.holdout else content
    resolve_names(source.annotations, source.images, content)
    return chosen


def read_coco(root: Path | str, split: SplitName) -> CocoSplit:
    """A split of a data set in COCO 2017's layout."""
    layout = LAYOUTS[0]
    files = layout.train if split == "train" else layout.val
    assert files is not None
    return read(source_of(Path(root).expanduser(), layout, files))


def sources(data: Data) -> dict[SplitName, Source]:
    """The splits of data=coco whose files are named or found; nothing for other readers."""
    found: dict[SplitName, Source] = {}
    for split in get_args(SplitName) if data.name == "coco" else ():
        with suppress(DataError):  # the reader raises it, if the split is needed
            found[split] = locate(data, split)
    return found


def fingerprints(data: Data) -> dict[str, str]:
    """Of the annotations below data.root by split, as far as they are visible here; data=coco is not parsed for it.

    Nothing without a root: generated data are a function of the configuration.
    """
    if data.name == "coco" or data.root is None:
        return {split: one.fingerprint() for split, one in sources(data).items() if one.annotations.is_file()}
    found: dict[str, str] = {}
    for split in get_args(SplitName):
        with suppress(DataError, OSError):
            found[split] = READERS[data.name](data, split).fingerprint
    return found


def describe_layout(data: Data) -> str:
    """Where the splits of data=coco are, for the log: one line, empty for other readers."""
    return "; ".join(f"{split}: {one}" for split, one in sources(data).items())


def coco(data: Data, split: SplitName) -> CocoSplit:
    source = locate(data, split)
    return once_parsed(source, partial(read, source), Path(data.cache))


def shapes(data: Data, split: SplitName) -> CocoSplit:
    return read_coco(generate(Path(data.cache), data.train_images, data.val_images), split)


READERS: dict[str, Callable[[Data, SplitName], CocoSplit]] = {"coco": coco, "shapes": shapes}
