"""The readers that `data.name` may name: a function for each reads one split.

A new format needs a function and a line in READERS, and a file of that name in conf/data/ (and in GENERATED,
config/schema.py, if it reads no files). The function builds the content of COCO's instances_*.json from its own files
and returns `CocoSplit.of(path, folder, content)`. Other places of COCO's json and its images: layouts.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from fovea_detr.config.schema import Data
from fovea_detr.data.annotations import CocoSplit
from fovea_detr.data.coco_json import load_coco
from fovea_detr.data.file_names import resolve_names
from fovea_detr.data.holdout import SplitName
from fovea_detr.data.layouts import LAYOUTS, Source, cached_fingerprint, locate, source_of
from fovea_detr.data.panoptic import PanopticFiles, as_objects, png_reader
from fovea_detr.data.panoptic_truth import check_truth
from fovea_detr.data.parsed import once_parsed
from fovea_detr.data.segmentations import Segmentations
from fovea_detr.data.shapes.generate import generate, generate_masks
from fovea_detr.errors import DataError


def read(source: Source, *, masks: bool = False) -> CocoSplit:
    """A split in COCO's format. DataError: a folder or file is missing, or the content is broken."""
    source.check()
    content, reader = partial(content_of, source, masks=masks), Segmentations.read if masks else None
    return CocoSplit.of(source.annotations, source.images, content, source.fingerprint(), reader)


def content_of(source: Source, *, masks: bool = False) -> Any:
    """COCO's dict of a split, the names of images resolved: in the whole file, so that no file is on both sides."""
    content = load_coco(source.annotations, masks=masks)
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
    for split in get_args(SplitName) if data.name in ("coco", "coco_panoptic") else ():
        with suppress(DataError):  # the reader raises it, if the split is needed
            found[split] = locate(data, split)
    return found


def fingerprints(data: Data) -> dict[str, str]:
    """Of the annotations below data.root by split, as far as they are visible here; data=coco is not parsed for it.

    Nothing without a root: generated data are a function of the configuration.
    """
    if data.name == "coco_panoptic":
        files = [(split, panoptic_files_of(data, split).annotations) for split in get_args(SplitName)]
        return {split: cached_fingerprint(path) for split, path in files if path.is_file()}
    if data.name == "coco" or data.root is None:
        return {split: one.fingerprint() for split, one in sources(data).items() if one.annotations.is_file()}
    found: dict[str, str] = {}
    for split in get_args(SplitName):
        with suppress(DataError, OSError):
            found[split] = READERS[data.name](data, split).fingerprint
    return found


def describe_layout(data: Data) -> str:
    """Where the splits of data=coco are, for the log: one line, empty for other readers."""
    found = [f"{split}: {one}" for split, one in sources(data).items()]
    found += (
        [f"panoptic: {panoptic_files_of(data, 'val').annotations.parents[1]}"] if data.name == "coco_panoptic" else []
    )
    return "; ".join(found)


def coco(data: Data, split: SplitName) -> CocoSplit:
    source = locate(data, split)
    if data.masks:
        return read(source, masks=True)
    return once_parsed(source, partial(read, source), Path(data.cache))


def coco_panoptic(data: Data, split: SplitName) -> CocoSplit:
    source = locate(data, split)
    return read_panoptic(panoptic_files_of(data, split), source, split, masks=data.masks)


def panoptic_files_of(data: Data, split: SplitName) -> PanopticFiles:
    return panoptic_files(Path(data.panoptic_root or data.root or "").expanduser(), split)


def shapes(data: Data, split: SplitName) -> CocoSplit:
    root = generate(Path(data.cache), data.train_images, data.val_images)
    if not data.masks:
        return read_coco(root, split)
    return read(shapes_source(root, split), masks=True)


def shapes_panoptic(data: Data, split: SplitName) -> CocoSplit:
    source = shapes_source(generate(Path(data.cache), data.train_images, data.val_images), split)
    return read_panoptic(panoptic_files(source.annotations.parents[1], split), source, split, masks=data.masks)


def shapes_source(root: Path, split: SplitName) -> Source:
    """The images of generated data, with annotations whose masks are the visible parts of the objects."""
    layout = LAYOUTS[0]
    files = layout.train if split == "train" else layout.val
    assert files is not None
    return replace(source_of(root, layout, files), annotations=generate_masks(root) / files.annotations)


def panoptic_files(root: Path, split: SplitName) -> PanopticFiles:
    return PanopticFiles(root / "annotations" / f"panoptic_{split}2017.json", root / f"panoptic_{split}2017")


def read_panoptic(files: PanopticFiles, instances: Source, split: SplitName, *, masks: bool) -> CocoSplit:
    """The segments of panoptic annotations as objects, crowds too; a validation split is evaluated against `instances`.

    Boxes come from the PNGs, so that these are read without masks, too. DataError: as `read`.
    """
    files.check()
    content = files.content()
    fingerprint = cached_fingerprint(files.annotations)
    reader = png_reader(files, content, with_masks=masks)
    as_instances = partial(as_objects, content)
    found = CocoSplit.of(files.annotations, instances.images, as_instances, fingerprint, reader, with_crowds=True)
    if split == "train":
        return replace(found, panoptic=files)
    check_truth(files.annotations, content)
    truth = read(instances, masks=masks)
    found.flaws.found.extend(truth.flaws.found)
    return replace(found, panoptic=files, truth=truth)


READERS: dict[str, Callable[[Data, SplitName], CocoSplit]] = {
    "coco": coco,
    "coco_panoptic": coco_panoptic,
    "shapes": shapes,
    "shapes_panoptic": shapes_panoptic,
}
