"""A generated data set in COCO's layout: coloured shapes on dull backgrounds, for an ablation in minutes on a CPU.

Six categories differ in outline and hue. An image holds 2 to 6 objects with boxes that overlap by at most a quarter of
the smaller one; polygons are amodal (they include covered parts); `generate_masks` writes the visible ones. Every
twentieth image also holds a crowd of tiny shapes with one run-length mask. An image depends on (seed, split, index).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fovea_detr.data.shapes.drawing import CATEGORIES, SPLITS, draw_image
from fovea_detr.data.shapes.visible import write_masks

VERSION = 1  # of the generator: increase it when any pixel or annotation changes: it is in the folder's name


def generate(cache: Path, train_images: int = 1024, val_images: int = 200, seed: int = 0) -> Path:
    """The data set's folder in `cache`, written by the first process that needs it; others wait for it."""
    folder = Path(cache) / f"shapes-v{VERSION}-train{train_images}-val{val_images}-seed{seed}"
    counts = dict(zip(SPLITS, (train_images, val_images), strict=True))

    def write(temporary: Path) -> None:
        for split, count in counts.items():
            _write_split(temporary, split, count, seed)

    return _written_once(folder, f"generating {sum(counts.values())} images of shapes", write)


def generate_masks(images: Path) -> Path:
    """The folder beside the images' that holds the visible masks and the panoptic annotations, in COCO's layout."""

    def write(temporary: Path) -> None:
        seed = int(images.name.rpartition("seed")[2])
        for split in SPLITS:
            write_masks(images, temporary, split, lambda index, split=split: draw_image(seed, split, index)[2])

    return _written_once(images.with_name(f"{images.name}-masks"), "generating the masks of the shapes", write)


def _written_once(folder: Path, what: str, write: Callable[[Path], object]) -> Path:
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            _write_atomically(folder, what, write)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        with suppress(OSError):  # a file system without locks: still, only one process succeeds in the rename
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_atomically(folder: Path, what: str, write: Callable[[Path], object]) -> None:
    print(f"{what}, once, in {folder}", flush=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        write(temporary)
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was first: use its folder
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_split(root: Path, split: str, count: int, seed: int) -> None:
    images, annotations = [], []
    (root / f"{split}2017").mkdir(parents=True)
    for index in range(count):
        image, objects, _ = draw_image(seed, split, index)
        name = f"{index + 1:012d}.jpg"
        with (root / f"{split}2017" / name).open("wb") as file:
            image.save(file, "JPEG", quality=90)
            _to_disk(file)
        images.append({"id": index + 1, "file_name": name, "width": image.width, "height": image.height})
        annotations += [{"id": len(annotations) + i, "image_id": index + 1, **o} for i, o in enumerate(objects, 1)]
    categories = [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(CATEGORIES, 1)]
    content = {"info": {"description": f"shapes, version {VERSION}, seed {seed}"}, "licenses": [], "images": images}
    (root / "annotations").mkdir(exist_ok=True)
    with (root / "annotations" / f"instances_{split}2017.json").open("w") as file:
        json.dump(content | {"annotations": annotations, "categories": categories}, file)
        _to_disk(file)


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
