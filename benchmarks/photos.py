"""A generated COCO data set for benchmarks: JPEGs of COCO's usual sizes with gradients, edges and noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

# (width, height) and its frequency in per cent, about as in COCO's training images.
SIZES_WH = {(640, 480): 28, (640, 427): 20, (480, 640): 13, (500, 375): 10, (427, 640): 8, (640, 426): 6}
SIZES_WH |= {(375, 500): 4, (640, 640): 3, (500, 333): 3, (612, 612): 2, (640, 360): 2, (333, 500): 1}
OBJECTS = 7  # per image, COCO's mean


def sizes_wh(count: int, seed: int = 0) -> list[tuple[int, int]]:
    """`count` sizes drawn with COCO's frequencies."""
    sizes, weights = list(SIZES_WH), np.array(list(SIZES_WH.values()))
    drawn = np.random.default_rng(seed).choice(len(sizes), count, p=weights / weights.sum())
    return [sizes[index] for index in drawn]


def photo(size_wh: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    width, height = size_wh
    light = np.zeros((height, width, 3))
    for cells, share in ((4, 0.6), (16, 0.3), (64, 0.1)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        light += share * np.asarray(coarse.resize(size_wh, Image.Resampling.BICUBIC))
    image = Image.fromarray((light + rng.normal(0, 6, light.shape)).clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(OBJECTS):
        x, y, radius = rng.integers(0, width), rng.integers(0, height), rng.integers(10, 80)
        red, green, blue = rng.integers(0, 256, 3).tolist()
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(red, green, blue))
    return image


def write_photos(root: Path, count: int, quality: int = 90) -> Path:
    """Write a training split in COCO's layout below `root` -> `root`."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    (root / "train2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    for number, (width, height) in enumerate(sizes_wh(count), 1):
        name = f"{number:012d}.jpg"
        photo((width, height), rng).save(root / "train2017" / name, quality=quality)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for _ in range(OBJECTS):
            w, h = int(rng.integers(20, width // 2)), int(rng.integers(20, height // 2))
            box = [int(rng.integers(0, width - w)), int(rng.integers(0, height - h)), w, h]
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": box})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return root
