"""Small data sets in COCO's layout, written for a test and broken on purpose by some."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SPLITS = ("train", "val")


def write_coco(
    root: Path,
    images: Sequence[tuple[int, int]] = ((48, 32), (32, 48)),
    annotations: Sequence[dict[str, Any]] | None = None,
    categories: Sequence[int] | Mapping[int, str] = (1, 2),
    splits: Sequence[str] = SPLITS,
) -> Path:
    """Write the same images and annotations into each split, and give back `root`.

    images: (width, height) in pixels each; they get the ids 1, 2, ... and the names 000001.jpg, ... of noise.
    annotations: what `box` makes; None: one box in the middle of every image, of the categories in turn.
    """
    names = categories if isinstance(categories, Mapping) else {i: f"category{i}" for i in categories}
    ids = list(names)
    if annotations is None:
        annotations = [
            box(i, ids[i % len(ids)], (width // 4, height // 4, width // 2, height // 2))
            for i, (width, height) in enumerate(images, 1)
        ]
    content = {
        "images": [
            {"id": i, "file_name": f"{i:06d}.jpg", "width": width, "height": height}
            for i, (width, height) in enumerate(images, 1)
        ],
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, 1)],
        "categories": [{"id": i, "name": name} for i, name in names.items()],
    }
    for split in splits:
        _write_images(root / f"{split}2017", images)
        annotation_path(root, split).parent.mkdir(parents=True, exist_ok=True)
        annotation_path(root, split).write_text(json.dumps(content))
    return root


def box(image_id: int, category_id: int, xywh: Sequence[float], iscrowd: int = 0) -> dict[str, Any]:
    area = xywh[2] * xywh[3]
    shared = {"image_id": image_id, "category_id": category_id, "bbox": list(xywh), "iscrowd": iscrowd}
    return {**shared, "area": area}


def write_awkward(root: Path, splits: Sequence[str] = SPLITS) -> Path:
    """Category ids with gaps, an image without annotations, a crowd, and images of 2000 x 300 and 300 x 2000 pixels."""
    annotations = [
        box(1, 3, (10.0, 12.0, 30.0, 20.0)),
        box(1, 90, (0.0, 0.0, 64.0, 48.0)),
        box(1, 7, (5.0, 5.0, 50.0, 40.0), iscrowd=1),
        box(3, 7, (1900.0, 100.0, 100.5, 150.0)),
        box(4, 90, (20.0, 1500.0, 200.0, 400.0)),
    ]
    sizes_wh = ((64, 48), (48, 64), (2000, 300), (300, 2000))
    return write_coco(root, sizes_wh, annotations, {3: "three", 7: "seven", 90: "ninety"}, splits)


def annotation_path(root: Path, split: str = "train") -> Path:
    return root / "annotations" / f"instances_{split}2017.json"


def image_path(root: Path, image_id: int, split: str = "train") -> Path:
    return root / f"{split}2017" / f"{image_id:06d}.jpg"


def edit(root: Path, change: Callable[[dict[str, Any]], object], split: str = "train") -> None:
    """Let `change` work on the content of an annotation file."""
    content = json.loads(annotation_path(root, split).read_text())
    change(content)
    annotation_path(root, split).write_text(json.dumps(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _write_images(folder: Path, sizes_wh: Sequence[tuple[int, int]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for image_id, (width, height) in enumerate(sizes_wh, 1):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((width, height)).save(folder / f"{image_id:06d}.jpg", quality=95)
