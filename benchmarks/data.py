"""Images per second that one core prepares, by stage, against a plain implementation of the published pipeline.

    python benchmarks/data.py [--runs 7]

Generated JPEGs of COCO's sizes in a temporary folder, read from the page cache; the published augmentation; batches of
four; one thread. Both sides transform the same images with the same random draws. Times are medians with alternating
sides, so that other load on the machine affects both equally.

"In a worker" is the work that cores do for a GPU. "Normalised, too" adds on our side the normalisation that the model
does on its device, here on the same core: the cost without a GPU. Copies to a GPU are not measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, multiprocessing

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import Side, medians
from benchmarks.photos import sizes_wh, write_photos
from benchmarks.plain import data as plain
from fovea_detr.data.batches import epoch_batches
from fovea_detr.data.coco import CocoDataset, decode
from fovea_detr.data.loader import Loader, collate_images
from fovea_detr.data.readers import read_coco
from fovea_detr.data.samples import Window, crop, horizontal_flip, resize
from fovea_detr.data.transforms import Plan, PublishedTraining, drawn_hw, draws
from fovea_detr.model.pixels import normalised

IMAGES, BATCH, PADDED_IMAGES = 24, 4, 8000
RATES = (20, 45, 100, 200)  # images per second of a GPU
Row = dict[str, Any]


def rows(runs: int) -> list[Row]:
    """Every row of the table: part, plain, ours, unit, ratio (above 1: ours is better), note."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(CocoDataset(read_coco(write_photos(Path(folder), IMAGES), "train"), PublishedTraining()))
            rates = pipeline_rows(bench, runs)
            table = [*rates, *stage_rows(bench, runs), *batch_rows(bench, runs)]
        return [*table, padding_row(), *core_rows(rates[0])]
    finally:
        torch.set_num_threads(threads)


class Bench:
    """The data set and both pipelines."""

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset
        self.paths = [dataset.annotations.folder / name for name in dataset.annotations.file_names]
        self.batches = [list(range(start, start + BATCH)) for start in range(0, len(dataset), BATCH)]

    def plan(self, index: int, epoch: int) -> Plan:
        height, width = self.dataset.annotations.sizes_hw[index].tolist()
        return self.dataset.transform.plan((height, width), draws(0, epoch, index + 1))

    def plain_example(self, index: int, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        split = self.dataset.annotations
        own = slice(split.starts[index], split.starts[index + 1])
        boxes, labels = torch.from_numpy(split.boxes_xyxy[own]), torch.from_numpy(split.labels[own])
        image, target = plain.augment(plain.decode(self.paths[index]), boxes, labels, self.plan(index, epoch))
        return plain.to_normalised(image), target

    def plain_epoch(self, epoch: int) -> None:
        for batch in self.batches:
            plain.collate([self.plain_example(index, epoch)[0] for index in batch])

    def our_epoch(self, epoch: int, *, normalise: bool) -> None:
        for batch, _ in Loader(self.dataset, seed=0, workers=0).read(self.batches, epoch=epoch):
            if normalise:
                normalised(batch.images, batch.sizes_hw)


def pipeline_rows(bench: Bench, runs: int) -> list[Row]:
    """Images a second of one core, whole pipeline. All sides see the same epochs."""
    epochs = iter(range(3 * (runs + 1)))

    def side(work: Callable[[int], None]) -> Side:
        return lambda: work(next(epochs) // 3)

    worker = side(lambda epoch: bench.our_epoch(epoch, normalise=False))
    all_in = side(lambda epoch: bench.our_epoch(epoch, normalise=True))
    theirs, ours, whole = (IMAGES / seconds for seconds in medians((side(bench.plain_epoch), worker, all_in), runs))
    note = "published augmentation, batches of 4"
    return [
        _row("data: one core in a worker", theirs, ours, "images/s", ours / theirs, note)
        | {"prototype": 180 / 42, "below": decoding(bench, runs, theirs, ours)},
        _row("data: one core, normalised, too", theirs, whole, "images/s", whole / theirs, "the case without a GPU"),
    ]


def decoding(bench: Bench, runs: int, theirs: float, ours: float) -> str:
    """The share of decoding, done by PIL on both sides. theirs, ours: images/s of the pipelines."""
    sides = (lambda: [plain.decode(path) for path in bench.paths]), (lambda: [decode(path) for path in bench.paths])
    parts = [1000 * seconds / IMAGES for seconds in medians(sides, runs)]
    whole = [1000 / theirs, 1000 / ours]
    rest = (whole[0] - parts[0]) / (whole[1] - parts[1])
    shares = " and ".join(f"{part:.2f} of {all_in:.2f} ms" for part, all_in in zip(parts, whole, strict=True))
    return f"decoding, by PIL on both sides, takes {shares} per image; the rest is {rest:.1f} times faster"


def stage_rows(bench: Bench, runs: int) -> list[Row]:
    """Milliseconds per stage for an image of 640 x 480."""
    sizes = bench.dataset.annotations.sizes_hw.tolist()
    index = sizes.index([480, 640])
    path, sample, image = bench.paths[index], bench.dataset.sample(index), plain.decode(bench.paths[index])
    first, window = (500, 666), Window(20, 60, 450, 550)
    larger, larger_image = resize(sample, first), plain.resize(image, first)
    stages: dict[str, tuple[Side, Side]] = {
        "decode": (lambda: plain.decode(path), lambda: decode(path)),
        "flip": (lambda: plain.flip(image), lambda: horizontal_flip(sample)),
        "resize to 500 before a crop": (lambda: plain.resize(image, first), lambda: resize(sample, first)),
        "crop to 450 x 550": (lambda: plain.crop(larger_image, 20, 60, 450, 550), lambda: crop(larger, window)),
        "resize to 800": (lambda: plain.resize(image, (800, 1066)), lambda: resize(sample, (800, 1066))),
    }
    note = {"decode": "640 x 480; plain ends with PIL's image, ours with a tensor"}
    return [
        _milliseconds(f"data: {stage}", medians(sides, 3 * runs), note.get(stage, "640 x 480; ours with its boxes"))
        for stage, sides in stages.items()
    ]


def batch_rows(bench: Bench, runs: int) -> list[Row]:
    """Milliseconds for a batch of four: assembly, preparation for the backbone, transfer from a worker."""
    indices = bench.batches[0]
    drawn = [bench.dataset[index].image for index in indices]
    images = [plain.Image.fromarray(image.permute(1, 2, 0).numpy()) for image in drawn]

    def plain_batch() -> tuple[Tensor, Tensor]:
        return plain.collate([plain.to_normalised(image) for image in images])

    def our_batch() -> Tensor:
        batch = collate_images(drawn)
        return normalised(batch.images, batch.sizes_hw)

    worker = medians((plain_batch, lambda: collate_images(drawn)), runs)
    whole = medians((plain_batch, our_batch), runs)
    sent = medians((sender(plain_batch()), sender(collate_images(drawn).images)), runs)
    height, width = plain_batch()[1].shape[1:]
    note = f"four images padded to {height} x {width}"
    return [
        _milliseconds("data: batch assembly in a worker", worker, f"{note}; plain: float, normalise, pad, mask")
        | {"prototype": 4.0},
        _milliseconds("data: batch assembly, normalised, too", whole, f"{note}; all on one core, padding included")
        | {
            "prototype": 4.0,
            "below": "bound by memory: both sides write the float planes; a run on a GPU writes them there",
        },
        _milliseconds("data: a batch through a worker's queue", sent, f"{note}; a fresh copy, put and taken"),
    ]


def sender(values: Any) -> Side:
    """A function that puts tensors into a queue, as a worker does, and takes them out."""
    queue = multiprocessing.get_context("fork").SimpleQueue()
    many = values if isinstance(values, tuple) else (values,)

    def send() -> None:
        queue.put([value.clone() for value in many])  # a tensor sent before is already in shared memory
        queue.get()

    return send


def padding_row() -> Row:
    """The share of padding in the pixels of training batches, in random order and bucketed by aspect ratio."""
    transform, total = PublishedTraining(), PADDED_IMAGES
    drawn = [drawn_hw(transform, (h, w), 0, 0, index) for index, (w, h) in enumerate(sizes_wh(total))]
    ratios = [width / height for height, width in drawn]
    before, after = (_padding_share(drawn, epoch_batches(total, BATCH, 1, 0, 0, 0, asked)) for asked in (None, ratios))
    pixels = (1 - after) / (1 - before)
    note = f"{total} images of COCO's sizes; data.bucketing=true; ratio: padded pixels per image, before / after"
    return _row("data: padding share, plain order against buckets", before, after, "of pixels", pixels, note)


def _padding_share(sizes_hw: list[tuple[int, int]], batches: list[list[int]]) -> float:
    own = sum(sizes_hw[index][0] * sizes_hw[index][1] for batch in batches for index in batch)
    padded = sum(
        len(batch) * max(sizes_hw[index][0] for index in batch) * max(sizes_hw[index][1] for index in batch)
        for batch in batches
    )
    return 1 - own / padded


def core_rows(rate: Row) -> list[Row]:
    """The number of cores needed for a GPU, from the images per second of one core."""
    return [
        _row(
            f"data: cores for a GPU at {wanted} images/s",
            wanted / rate["plain"],
            wanted / rate["ours"],
            "cores",
            rate["ours"] / rate["plain"],
            "cores of this machine; set data.workers to at least this",
        )
        for wanted in RATES
    ]


def _milliseconds(part: str, seconds: list[float], note: str) -> Row:
    theirs, ours = (1000 * value for value in seconds)
    return _row(part, theirs, ours, "ms", theirs / ours, note)


def _row(part: str, theirs: float, ours: float, unit: str, ratio: float, note: str) -> Row:
    return {"part": part, "plain": theirs, "ours": ours, "unit": unit, "ratio": ratio, "note": note}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    print(f"{'part':<50} {'plain':>9} {'ours':>9} {'unit':<9} {'ratio':>6}  note")
    for row in rows(parser.parse_args().runs):
        figures = f"{row['plain']:9.3g} {row['ours']:9.3g} {row['unit']:<9} {row['ratio']:6.2f}"
        print(f"{row['part']:<50} {figures}  {row['note']}", flush=True)


if __name__ == "__main__":
    main()
