"""COCO's metrics on a validation split: ours (hotcoco) against pycocotools fed with dicts, as published.

    python -m benchmarks.evaluation [--runs 1] [--images 5000] [--growth]

A generated split like COCO's val2017: 7.3 boxes per image over 80 categories (a third of the boxes are of the most
frequent one), category ids with gaps, some crowds. 100 detections per image (DETR) or 300 (with the fovea): every
object is detected several times with noise; the rest are low-scored boxes of categories on the image and of others.
Measured from detections as float32 tensors to the metrics, which must be equal on both sides. The ground truth is
indexed before, as both sides do it once per run. One thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.plain import evaluation as plain
from fovea_detr.evaluation.coco import DetectionTable, GroundTruth, coco_metrics
from fovea_detr.types import Detections

CATEGORY_IDS = np.array([i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)])
WIDTH_HEIGHT = np.array([640.0, 480.0])
BOXES_AN_IMAGE = 7.3
PROTOTYPES = {100: 101 / 13, 300: 204 / 42}  # by detections per image: seconds of pycocotools / of the prototype
GROWTH = (250, 500, 1000, 2000)


@dataclass
class Case:
    """A split of N images with `per_image` detections each, as one table and as one record per image."""

    content: dict[str, Any]
    table: DetectionTable
    by_image: dict[int, Detections]


def random_case(images: int, per_image: int, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(images), rng.poisson(BOXES_AN_IMAGE, images).clip(max=per_image))
    categories, boxes = random_categories(len(owners), rng), random_xywh(len(owners), rng)
    image_ids = np.sort(rng.choice(600_000, images, replace=False))
    annotations = [
        {"id": k, "image_id": owner, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        for k, (owner, category, box, crowd) in enumerate(
            zip(
                image_ids[owners].tolist(),
                CATEGORY_IDS[categories].tolist(),
                boxes.tolist(),
                (rng.random(len(owners)) < 0.012).astype(int).tolist(),
                strict=True,
            ),
            start=1,
        )
    ]
    content = {
        "images": [{"id": i} for i in image_ids.tolist()],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"category {i}"} for i in CATEGORY_IDS.tolist()],
    }
    starts = np.searchsorted(owners, np.arange(images + 1))
    by_image = {
        image_id: detections(categories[starts[i] : starts[i + 1]], boxes[starts[i] : starts[i + 1]], per_image, rng)
        for i, image_id in enumerate(image_ids.tolist())
    }
    return Case(content, in_rows(by_image), by_image)


def random_categories(count: int, rng: np.random.Generator) -> np.ndarray:
    """[count] indices into CATEGORY_IDS; a third are the first, the others have decreasing frequency."""
    weights = 1 / np.arange(3, 83)
    weights[0] = weights[1:].sum() / 2
    return rng.choice(80, count, p=weights / weights.sum())


def random_xywh(count: int, rng: np.random.Generator) -> np.ndarray:
    """[count, 4] pixels, inside the image; about a third each are small, medium and large."""
    size = np.exp(rng.normal(4.0, 1.0, (count, 2))).clip(4, WIDTH_HEIGHT)
    return np.concatenate([rng.random((count, 2)) * (WIDTH_HEIGHT - size), size], axis=1)


def detections(categories: np.ndarray, boxes: np.ndarray, count: int, rng: np.random.Generator) -> Detections:
    """`count` detections on an image with the given objects (categories [T], boxes [T, 4] xywh), best first."""
    near = np.tile(np.arange(len(boxes)), 3)[:count]
    noise = rng.normal(0, 0.12, (len(near), 4)) * np.tile(boxes[near, 2:], 2)
    others = count - len(near)
    pool = np.concatenate([np.repeat(categories, 4), random_categories(20, rng)])
    places = np.concatenate([categories[near], rng.choice(pool, others)])
    xywh = np.concatenate([boxes[near] + noise, random_xywh(others, rng)])
    xywh[:, 2:] = xywh[:, 2:].clip(min=1)
    scores = np.concatenate([rng.beta(2, 2, len(near)), rng.beta(1, 9, others)]).astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32)
    columns = (scores, CATEGORY_IDS[places], corners, np.arange(count))
    return Detections(*(torch.from_numpy(column[order]) for column in columns))


def in_rows(by_image: dict[int, Detections]) -> DetectionTable:
    """In the format of `fovea_detr.evaluation.detections.detect`."""
    scores, labels, boxes = (
        torch.cat([getattr(one, name) for one in by_image.values()]) for name in ("scores", "labels", "boxes_xyxy")
    )
    sides = (boxes[:, :2], boxes[:, 2:] - boxes[:, :2], scores[:, None], labels[:, None])
    image_ids = torch.tensor(list(by_image)).repeat_interleave(len(scores) // len(by_image))
    return DetectionTable(image_ids, torch.cat([side.double() for side in sides], dim=1))


def measured(images: int, per_image: int, runs: int) -> tuple[float, float, float]:
    """-> the median seconds of the plain side and of ours, and the largest difference of a metric."""
    case = random_case(images, per_image)
    truth, index = plain.indexed(case.content), GroundTruth(case.content)
    times: list[tuple[float, float]] = []
    difference = 0.0
    for _ in range(runs):
        slow, expected = timed(lambda: plain.coco_numbers(truth, case.by_image))
        fast, metrics = timed(lambda: coco_metrics(index, case.table))
        times.append((slow, fast))
        difference = max(abs(metrics[name] - number) for name, number in expected.items())
        assert difference <= 1e-12, f"{images} images: the numbers differ by {difference}"
        assert 0.1 < metrics["AP"] < 0.9, metrics
    slow, fast = zip(*times, strict=True)
    return median(slow), median(fast), difference


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, of all threads, and the answer."""
    begin = time.process_time()
    answer = work()
    return time.process_time() - begin, answer


def rows(runs: int, images: int = 5000) -> list[dict[str, Any]]:
    """One row per number of detections per image; `ratio` is plain / ours."""
    return [
        row(f"COCO metrics, {images} images x {per_image}", images, per_image, runs) | {"prototype": prototype}
        for per_image, prototype in PROTOTYPES.items()
    ]


def growth(runs: int = 3) -> list[dict[str, Any]]:
    """One row per number of images, with 100 detections each."""
    return [row("COCO metrics, 100 an image", images, 100, runs) | {"images": images} for images in GROWTH]


def row(part: str, images: int, per_image: int, runs: int) -> dict[str, Any]:
    slow, fast, difference = measured(images, per_image, runs)
    note = f"COCOeval's metrics equal to {difference:.0e}"
    return {"part": part, "plain": slow, "ours": fast, "unit": "s", "ratio": slow / fast, "note": note}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1, help="runs of each side; the median is reported")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--growth", action="store_true", help=f"measure {GROWTH} images instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    made = growth(arguments.runs) if arguments.growth else rows(arguments.runs, arguments.images)
    print(f"{'':40} {'pycocotools':>12} {'ours':>9} {'ratio':>7}")
    for one in made:
        where = f"{one['part']}" + (f", {one['images']} images" if "images" in one else "")
        print(f"{where:40} {one['plain']:10.1f} s {one['ours']:7.2f} s {one['ratio']:6.1f}x  {one['note']}")


if __name__ == "__main__":
    main()
