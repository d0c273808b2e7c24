"""The augmentation: sizes as published, boxes that follow the pixels, and draws that depend on three numbers only."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations_with_replacement

import pytest
import torch

from fovea_detr.data.samples import Sample, as_target, crop, horizontal_flip, resize
from fovea_detr.data.transforms import (
    MOST_ENLARGED,
    LongSide,
    PublishedTraining,
    Transform,
    drawn_hw,
    draws,
    eval_transform,
    mixed_seed,
    random_window,
    short_side_size,
    train_transform,
)

BOX = (10, 20, 50, 40)  # left, top, right, bottom: the white rectangle of `white_box`


def white_box(height: int = 60, width: int = 80, box: tuple[int, int, int, int] = BOX) -> Sample:
    """A white rectangle on black, and the box around it."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, box[1] : box[3], box[0] : box[2]] = 255
    return Sample(image, torch.tensor([box], dtype=torch.float32), torch.tensor([7]))


def seeded(transform: Transform, sample: Sample, seed: int, epoch: int, image_id: int) -> Sample:
    return transform.augment(sample, draws(seed, epoch, image_id))


def random_crop(sample: Sample, sides: tuple[int, int], generator: torch.Generator) -> Sample:
    return crop(sample, random_window(sample.size_hw, sides, generator))


def box_of_white(image: torch.Tensor) -> list[int]:
    ys, xs = (image[0] > 127).nonzero(as_tuple=True)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


@pytest.mark.parametrize(
    ("size_hw", "side", "max_side", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1066)),
        ((640, 480), 800, 1333, (1066, 800)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((300, 2000), 800, 1333, (200, 1333)),
        ((2000, 300), 800, 1333, (1333, 200)),
        ((500, 500), 480, 1333, (480, 480)),
        ((192, 256), 128, 128, (96, 128)),
        ((300, 2000), 600, None, (600, 4000)),
        ((1, 5000), 800, 1333, (1, 1333)),
        ((201, 640), 800, 1333, (419, 1334)),
        ((640, 201), 800, 1333, (1334, 419)),
        ((1, 2000), 800, 1333, (1, 2000)),
    ],
)
def test_sizes(size_hw: tuple[int, int], side: int, max_side: int | None, expected: tuple[int, int]) -> None:
    assert short_side_size(size_hw, side, max_side) == expected


def published_size(size_hw: tuple[int, int], side: int, max_side: int | None) -> tuple[int, int]:
    """The published rule, in floating point: nothing limits the long side after the short one was rounded."""
    (height, width), (short, long) = size_hw, sorted(size_hw)
    if max_side is not None and long / short * side > max_side:
        side = round(max_side * short / long)
    return int(side * height / short), int(side * width / short)


@pytest.mark.parametrize("max_side", [1333, 640, None])
def test_sizes_are_the_published_ones(max_side: int | None) -> None:
    draws, longer = random.Random(0), 0
    fixed = [(height, width) for height in range(150, 650, 7) for width in (200, 333, 480, 640, 641)]
    drawn = [(draws.randint(2, 1000), draws.randint(2, 1000)) for _ in range(3000)]
    for size_hw in fixed + drawn:
        for side in (400, 480, 608, 800):
            found = short_side_size(size_hw, side, max_side)
            assert found == published_size(size_hw, side, max_side), (size_hw, side)
            longer += max_side is not None and max(found) > max_side
    assert longer > 100 or max_side is None


@pytest.mark.parametrize("size_hw", [(201, 640), (640, 201)])
def test_training_and_evaluation_resize_alike(size_hw: tuple[int, int]) -> None:
    evaluation, training = eval_transform("coco"), PublishedTraining(short_sides=(800,), crop=0.0)
    assert evaluation.prepared_hw(size_hw) == drawn_hw(training, size_hw, 0, 0, 1) == published_size(size_hw, 800, 1333)


def test_the_tiny_recipe_never_exceeds_its_long_side() -> None:
    """Of every size up to 256 px: the long side is cut to 128 px after the rounding."""
    recipe, cut = LongSide(128), 0
    for short, long in combinations_with_replacement(range(1, 257), 2):
        side = max(1, round(128 * short / long))
        wanted = (side, min(int(side * long / short), 128))
        assert recipe.prepared_hw((short, long)) == wanted
        assert recipe.prepared_hw((long, short)) == wanted[::-1]
        cut += int(side * long / short) > 128
    assert cut > 1000


def test_boxes_follow_the_pixels_through_flip_and_resize() -> None:
    sample = white_box()
    assert (
        box_of_white(horizontal_flip(sample).image)
        == horizontal_flip(sample).boxes_xyxy[0].tolist()
        == [30, 20, 70, 40]
    )
    larger = resize(sample, (120, 160))
    assert box_of_white(larger.image) == larger.boxes_xyxy[0].tolist() == [20, 40, 100, 80]
    assert sample.boxes_xyxy[0].tolist() == list(BOX)  # what is kept in memory stays as it was


@pytest.mark.parametrize("seed", range(20))
def test_boxes_follow_the_pixels_through_a_crop(seed: int) -> None:
    cropped = random_crop(white_box(), (16, 40), torch.Generator().manual_seed(seed))
    assert all(16 <= side <= 40 for side in cropped.size_hw)
    if len(cropped.labels):
        assert box_of_white(cropped.image) == cropped.boxes_xyxy[0].tolist()
    else:
        assert not (cropped.image > 127).any()
        assert cropped.boxes_xyxy.shape == (0, 4)


def test_a_crop_leaves_a_short_side_whole_and_draws_every_size() -> None:
    draws = torch.Generator().manual_seed(0)
    sizes = [random_crop(white_box(30, 90), (40, 44), draws).size_hw for _ in range(200)]
    assert {height for height, _ in sizes} == {30}
    assert {width for _, width in sizes} == {40, 41, 42, 43, 44}
    assert {random_crop(white_box(42, 90), (40, 44), draws).size_hw[0] for _ in range(200)} == {40, 41, 42}


def test_the_published_augmentation() -> None:
    transform = train_transform("coco", short_sides=(48, 64), max_side=100, crop_short_sides=(40,), crop_sides=(12, 36))
    samples = [seeded(transform, white_box(), 0, epoch, 1) for epoch in range(300)]
    uncropped = [s for s in samples if s.size_hw in {(48, 64), (64, 85)}]
    assert 110 < len(uncropped) < 220
    assert all(min(s.size_hw) in (48, 64) or max(s.size_hw) > 95 for s in samples)  # truncated, as published
    assert all(max(s.size_hw) <= 100 for s in samples)
    assert any(len(s.labels) == 0 for s in samples)
    assert all(len(s.labels) == len(s.boxes_xyxy) for s in samples)
    for sample in samples:
        target = as_target(sample)
        assert (target.boxes_cxcywh[:, 2:] > 0).all()
        assert target.boxes_cxcywh.min() >= 0 if len(target) else True
        assert target.boxes_cxcywh.max() <= 1 + 1e-6 if len(target) else True
    flipped = [s for s in uncropped if s.boxes_xyxy[0, 0] + s.boxes_xyxy[0, 2] > s.size_hw[1]]
    assert 0.35 < len(flipped) / len(uncropped) < 0.65


@pytest.mark.parametrize("size_hw", [(1, 3000), (3000, 1), (7, 1400)])
def test_no_image_is_enlarged_beyond_the_bound(size_hw: tuple[int, int]) -> None:
    plans = [PublishedTraining(crop=1.0).plan(size_hw, torch.Generator().manual_seed(seed)) for seed in range(20)]
    enlarged = [plan.crop_from_hw for plan in plans if plan.crop_from_hw is not None]
    assert all(height * width <= MOST_ENLARGED for height, width in enlarged)
    assert (len(enlarged) > 0) == (size_hw == (7, 1400))


def test_the_published_defaults() -> None:
    transform = train_transform("coco")
    assert isinstance(transform, PublishedTraining)
    assert tuple(transform.short_sides) == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert (transform.max_side, transform.crop_short_sides, transform.crop_sides) == (1333, (400, 500, 600), (384, 600))
    assert eval_transform("coco").prepare(white_box(300, 400)).size_hw == (800, 1066)


@pytest.mark.parametrize("size_hw", [(300, 2000), (2000, 300), (60, 80)])
def test_long_and_small_images_survive_the_published_augmentation(size_hw: tuple[int, int]) -> None:
    for epoch in range(4):
        sample = seeded(train_transform("coco"), white_box(*size_hw), 0, epoch, 1)
        assert max(sample.size_hw) <= 1333


def test_the_tiny_recipe_flips_in_training_only() -> None:
    train, evaluation = train_transform("tiny"), eval_transform("tiny")
    prepared = train.prepare(white_box(192, 256))
    assert prepared.size_hw == evaluation.prepare(white_box(192, 256)).size_hw == (96, 128)
    lefts = [seeded(train, prepared, 0, epoch, 1).boxes_xyxy[0, 0].item() for epoch in range(100)]
    assert set(lefts) == {5.0, 103.0}
    assert 30 < lefts.count(5.0) < 70
    assert isinstance(evaluation, LongSide)
    assert {seeded(evaluation, prepared, 0, epoch, 1).boxes_xyxy[0, 0].item() for epoch in range(20)} == {5.0}


def test_draws_depend_on_seed_epoch_and_image_and_leave_torch_alone() -> None:
    transform = train_transform("coco", short_sides=range(40, 80), max_side=200, crop_sides=(24, 36))
    keys = [(seed, epoch, image_id) for seed in (0, 1) for epoch in (0, 1) for image_id in (5, 6)]
    before = torch.get_rng_state()
    first = {key: seeded(transform, white_box(), *key) for key in keys}
    torch.rand(3)
    again = {key: seeded(transform, white_box(), *key) for key in reversed(keys)}
    torch.set_rng_state(before)
    for key in keys:
        torch.testing.assert_close(first[key].image, again[key].image, rtol=0, atol=0)
    assert len({sample.image.numpy().tobytes() for sample in first.values()}) == len(keys)
    seeded(transform, white_box(), 0, 0, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_neighbouring_seeds_are_unrelated() -> None:
    seeds = {mixed_seed("augment", a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(seeds) == 512
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("transform", [train_transform("coco"), train_transform("tiny"), eval_transform("coco")])
@pytest.mark.parametrize("size_hw", [(48, 64), (90, 30), (300, 2000)])
def test_a_size_is_known_without_the_image(transform: Transform, size_hw: tuple[int, int]) -> None:
    for epoch in range(6):
        sample = seeded(transform, transform.prepare(white_box(*size_hw)), 2, epoch, 5)
        assert drawn_hw(transform, size_hw, 2, epoch, 5) == sample.size_hw


@pytest.mark.parametrize("make", [train_transform, eval_transform])
def test_an_unknown_recipe_is_refused(make: Callable[[str], Transform]) -> None:
    with pytest.raises(ValueError, match="is not one of coco, tiny"):
        make("voc")


def every_size(recipe: PublishedTraining, size_hw: tuple[int, int]) -> set[tuple[int, int]]:
    """All sizes that any draw can lead to, one by one."""
    shapes = {size_hw}
    for side in recipe.crop_short_sides if recipe.crop else ():
        low, high = recipe.crop_sides
        rows, columns = (range(min(low, s), min(high, s) + 1) for s in short_side_size(size_hw, side, None))
        shapes |= {(height, width) for height in rows for width in columns}
    return {short_side_size(shape, side, recipe.max_side) for shape in shapes for side in recipe.short_sides}


@pytest.mark.parametrize("size_hw", [(30, 40), (40, 30), (10, 90), (90, 10), (33, 33), (1, 50), (7, 25)])
@pytest.mark.parametrize(("max_side", "crop"), [(50, 0.5), (50, 0.0), (34, 0.5), (1000, 0.5)])
def test_largest_sizes_are_those_of_every_draw(size_hw: tuple[int, int], max_side: int, crop: float) -> None:
    recipe = PublishedTraining((20, 30), max_side, (15, 20, 25), (10, 20), crop=crop)
    drawn, largest = every_size(recipe, size_hw), recipe.largest_sizes(size_hw)
    assert set(largest) <= drawn, "each of them can be drawn"
    for side in (0, 1):
        assert max(size[side] for size in largest) == max(size[side] for size in drawn)
    most = max(height * width for height, width in drawn)
    assert max(height * width for height, width in largest) == most
    assert all(any(height <= h and width <= w for h, w in largest) for height, width in drawn)


@pytest.mark.parametrize("size_hw", [(480, 640), (640, 427), (300, 2000)])
def test_largest_sizes_of_the_published_recipe_are_exact(size_hw: tuple[int, int]) -> None:
    recipe = PublishedTraining(short_sides=(800,))
    drawn, largest = every_size(recipe, size_hw), recipe.largest_sizes(size_hw)
    for measure in (lambda hw: hw[0], lambda hw: hw[1], lambda hw: hw[0] * hw[1]):
        assert max(map(measure, largest)) == max(map(measure, drawn))


@pytest.mark.parametrize("kind", ["coco", "tiny"])
def test_no_draw_is_larger_than_the_largest_sizes(kind: str) -> None:
    recipe = train_transform(kind, short_sides=(40, 64), max_side=107, crop_short_sides=(32, 48), crop_sides=(31, 48))
    for size in ((48, 64), (64, 36), (20, 90)):
        sample = recipe.prepare(white_box(*size, box=(1, 1, 9, 9)))
        for epoch in range(40):
            height, width = seeded(recipe, sample, seed=0, epoch=epoch, image_id=1).size_hw
            assert any(height <= h and width <= w for h, w in recipe.largest_sizes(size))
