"""benchmarks/data.py: the plain pipeline equals ours in sizes, targets, and pixels up to rounding."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks import data as benchmark
from benchmarks.photos import write_photos
from benchmarks.plain import data as plain
from fovea_detr.data.coco import CocoDataset, Draw
from fovea_detr.data.loader import collate_images
from fovea_detr.data.readers import read_coco
from fovea_detr.data.transforms import train_transform
from fovea_detr.model.pixels import IMAGENET_STD, normalised


def test_the_plain_pipeline_is_the_same_but_for_rounding(tmp_path: Path) -> None:
    dataset = CocoDataset(
        read_coco(write_photos(tmp_path, 2), "train"), train_transform("coco", short_sides=(96,), max_side=140)
    )
    bench = benchmark.Bench(dataset)
    level = 1 / 255 / min(IMAGENET_STD)
    for draw in (Draw(index, epoch) for index in range(2) for epoch in range(4)):
        ours = dataset[draw]
        image, target = bench.plain_example(draw.index, draw.epoch)
        padded, is_padding = plain.collate([image, image[:, :5, :7]])
        batch = collate_images([ours.image, ours.image[:, :5, :7]])
        found = normalised(batch.images, batch.sizes_hw)
        assert padded.shape == found.shape
        assert (padded - found).abs().max() < 2.5 * level  # two resizes, each rounded by PIL
        assert (padded - found).abs().mean() < level / 50
        assert is_padding.equal((torch.ones_like(is_padding)) ^ is_own(is_padding, batch.sizes_hw))
        assert target["labels"].equal(ours.target.labels)
        torch.testing.assert_close(target["boxes"], ours.target.boxes_cxcywh)


def is_own(like: torch.Tensor, sizes_hw: torch.Tensor) -> torch.Tensor:
    own = torch.zeros_like(like)
    for mask, (height, width) in zip(own, sizes_hw.tolist(), strict=True):
        mask[:height, :width] = True
    return own


def test_every_row_of_the_table_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "IMAGES", 8)
    monkeypatch.setattr(benchmark, "PADDED_IMAGES", 400)
    threads = torch.get_num_threads()
    table = benchmark.rows(1)
    assert torch.get_num_threads() == threads
    assert all(row.keys() >= {"part", "plain", "ours", "unit", "ratio", "note"} for row in table)
    assert all(math.isfinite(row[key]) and row[key] > 0 for row in table for key in ("plain", "ours", "ratio"))
    assert len({row["part"] for row in table}) == len(table) == 15
    (padding,) = (row for row in table if "padding share" in row["part"])
    assert padding["ours"] < padding["plain"]
