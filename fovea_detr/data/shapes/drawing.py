"""The images of the tiny data set: coloured shapes on a noisy background, a function of (seed, split, index)."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

SPLITS = ("train", "val")
CATEGORIES = ("circle", "square", "triangle", "star", "ring", "cross")  # ids 1 to 6
SIZES_WH = ((256, 256), (256, 192), (192, 256))
DIAMETERS = (0.16 * 256, 0.60 * 256)  # pixels
CROWD_DIAMETERS = (5.0, 11.0)
ASPECTS = (2 / 3, 3 / 2)
MAX_OVERLAP = 0.25  # of the smaller box
CROWD_EVERY = 20  # images
SMOOTHING = 2  # masks are drawn this many times larger, then reduced


@dataclass
class _Shape:
    category: int  # 1 to 6
    points: np.ndarray  # [P, 2] (x, y) pixels

    @property
    def box_xyxy(self) -> np.ndarray:
        return np.concatenate([self.points.min(0), self.points.max(0)])


def draw_image(seed: int, split: str, index: int) -> tuple[Image.Image, list[dict[str, Any]], list[np.ndarray]]:
    """One image, its annotations (without ids) and the visible part of each, [h, w] bool, from the arguments only."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    size_wh = SIZES_WH[rng.integers(len(SIZES_WH))]
    crowd = _crowd(rng, size_wh) if index % CROWD_EVERY == 0 else []
    shapes = _layout(rng, size_wh, crowd)
    canvas = Image.fromarray(_background(rng, size_wh).clip(0, 255).astype(np.uint8))
    covered = [_paint(rng, canvas, shape) for shape in crowd + shapes]
    grain = rng.standard_normal((size_wh[1], size_wh[0], 1), dtype=np.float32) * 6
    pixels = (np.asarray(canvas, dtype=np.float32) + grain).clip(0, 255).astype(np.uint8)
    objects = [_annotation(shape) for shape in shapes]
    if crowd:
        objects.append(_crowd_annotation(crowd[0].category, np.any(covered[: len(crowd)], axis=0)))
    return Image.fromarray(pixels), objects, _visible(covered, len(crowd))


def _visible(covered: list[np.ndarray], crowd: int) -> list[np.ndarray]:
    """covered: [h, w] bool of each shape, the later ones on top, first those of the crowd -> of the annotations."""
    above, found = np.zeros_like(covered[0]), []
    for mask in reversed(covered):
        found.insert(0, mask & ~above)
        above = above | mask
    return found[crowd:] + ([np.any(found[:crowd], axis=0)] if crowd else [])


def _unit_outline(category: int) -> np.ndarray:
    """[P, 2] points around the origin, about one unit across. A ring has a slit: polygons in COCO have no holes."""

    def around(count: int, *radii: float) -> np.ndarray:
        angles = np.arange(count) * 2 * np.pi / count
        radius = np.resize(np.array(radii), count)
        return np.stack([np.cos(angles) * radius, np.sin(angles) * radius], axis=1)

    def closed(points: np.ndarray) -> np.ndarray:
        return np.concatenate([points, points[:1]])

    if CATEGORIES[category - 1] == "ring":
        return np.concatenate([closed(around(32, 0.5)), closed(around(32, 0.28))[::-1]])
    if CATEGORIES[category - 1] == "cross":
        corner = np.array([[0.48, -0.15], [0.48, 0.15], [0.15, 0.15]])
        turns = [np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        return np.concatenate([corner @ turn for turn in turns])
    return {
        "circle": around(32, 0.5),
        "square": np.array([[0.39, 0.39], [-0.39, 0.39], [-0.39, -0.39], [0.39, -0.39]]),
        "triangle": around(3, 0.55),
        "star": around(10, 0.5, 0.22),
    }[CATEGORIES[category - 1]]


def _shape(rng: Generator, category: int, diameters: tuple[float, float], area_xyxy: np.ndarray) -> _Shape | None:
    """A shape of random diameter, aspect, rotation and place, inside the area; None if it is too large."""
    diameter, aspect = (np.exp(rng.uniform(*np.log(limits))) for limits in (diameters, ASPECTS))
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = _unit_outline(category) * diameter * np.sqrt([aspect, 1 / aspect]) @ turn
    points -= points.min(0)
    room = area_xyxy[2:] - area_xyxy[:2] - points.max(0)
    if room.min() < 0:
        return None
    return _Shape(category, (points + area_xyxy[:2] + rng.uniform(0, 1, 2) * room).round(2))


def _layout(rng: Generator, size_wh: tuple[int, int], crowd: list[_Shape]) -> list[_Shape]:
    """2 to 6 shapes. One without a free place after 100 tries is left out; there are at least 2."""
    whole = np.array([0, 0, *size_wh])
    shapes: list[_Shape] = []
    while len(shapes) < 2:
        shapes, taken = [], [_hull(crowd)] if crowd else []
        for category in rng.integers(1, len(CATEGORIES) + 1, rng.integers(2, 7)):
            tries = (_shape(rng, int(category), DIAMETERS, whole) for _ in range(100))
            found = next((s for s in tries if s and all(_overlap(s.box_xyxy, t) <= MAX_OVERLAP for t in taken)), None)
            if found:
                shapes.append(found)
                taken.append(found.box_xyxy)
    return shapes


def _crowd(rng: Generator, size_wh: tuple[int, int]) -> list[_Shape]:
    """12 to 24 tiny shapes of one category, close together."""
    corner = rng.uniform(0, 1, 2) * (np.array(size_wh) - 80)
    area = np.concatenate([corner, corner + 80])
    category = int(rng.integers(1, len(CATEGORIES) + 1))
    shapes = [_shape(rng, category, CROWD_DIAMETERS, area) for _ in range(rng.integers(12, 25))]
    return [shape for shape in shapes if shape]


def _hull(shapes: list[_Shape]) -> np.ndarray:
    boxes = np.stack([shape.box_xyxy for shape in shapes])
    return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])


def _overlap(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> float:
    """The boxes' intersection as a fraction of the smaller box."""
    sides = np.minimum(a_xyxy[2:], b_xyxy[2:]) - np.maximum(a_xyxy[:2], b_xyxy[:2])
    smaller = min(np.prod(a_xyxy[2:] - a_xyxy[:2]), np.prod(b_xyxy[2:] - b_xyxy[:2]))
    return float(np.prod(sides.clip(0)) / smaller)


def _background(rng: Generator, size_wh: tuple[int, int]) -> np.ndarray:
    """[h, w, 3] float: a gradient between two greyish colours, low-frequency clouds, and stripes."""
    width, height = size_wh
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / 256
    first, second = rng.uniform(60, 200, (2, 1)) + rng.uniform(-15, 15, (2, 3))
    angles = rng.uniform(0, 2 * np.pi, 2)
    along = ((np.cos(angles[0]) * x + np.sin(angles[0]) * y) * 0.7 + 0.5).clip(0, 1)[..., None]
    clouds = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).resize(size_wh, Image.Resampling.BICUBIC)
    wave = np.cos(angles[1]) * x + np.sin(angles[1]) * y
    stripes = np.sin(wave * np.float32(rng.uniform(20, 120))) * np.float32(rng.uniform(0, 18))
    dull = (np.asarray(clouds, dtype=np.float32) - 128) * 0.2 + stripes
    return (first + (second - first) * along + dull[..., None]).astype(np.float32)


def _paint(rng: Generator, canvas: Image.Image, shape: _Shape) -> np.ndarray:
    """Draw the shape with a colour of its category's hue; [h, w] bool, the pixels it covers."""
    hue = (shape.category - 1) / len(CATEGORIES) + rng.uniform(-0.05, 0.05)
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, *rng.uniform(0.55, 1, 2)))
    large = Image.new("L", (canvas.width * SMOOTHING, canvas.height * SMOOTHING))
    ImageDraw.Draw(large).polygon((shape.points * SMOOTHING - 0.5).ravel().tolist(), fill=255)
    mask = large.reduce(SMOOTHING)
    canvas.paste((red, green, blue), mask=mask)
    return np.asarray(mask) > 127


def _annotation(shape: _Shape) -> dict[str, Any]:
    (x, y), (right, bottom) = shape.points.min(0), shape.points.max(0)
    following = np.roll(shape.points, -1, axis=0)
    doubled = shape.points[:, 0] * following[:, 1] - shape.points[:, 1] * following[:, 0]
    return {
        "category_id": shape.category,
        "bbox": [round(float(v), 2) for v in (x, y, right - x, bottom - y)],
        "area": round(abs(float(doubled.sum())) / 2, 2),
        "iscrowd": 0,
        "segmentation": [[round(float(v), 2) for v in shape.points.ravel()]],
    }


def _crowd_annotation(category: int, mask: np.ndarray) -> dict[str, Any]:
    """mask: [h, w] bool. Uncompressed run lengths, column by column, zeros first, as COCO writes crowds."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    if edges[-1] == mask.size:
        counts = counts[:-1]
    ys, xs = np.nonzero(mask)
    left, top = int(xs.min()), int(ys.min())
    return {
        "category_id": category,
        "bbox": [left, top, int(xs.max()) + 1 - left, int(ys.max()) + 1 - top],
        "area": int(mask.sum()),
        "iscrowd": 1,
        "segmentation": {"size": list(mask.shape), "counts": counts.tolist()},
    }
