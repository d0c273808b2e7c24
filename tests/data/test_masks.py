"""Masks of instances and of panoptic segments: as published, through every augmentation and the loader; flaws."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pycocotools.mask
import pytest
import torch
from PIL import Image
from torch.nn import functional

from fovea_detr.config.schema import Data
from fovea_detr.data import coco_json
from fovea_detr.data.annotations import CocoSplit
from fovea_detr.data.coco import CocoDataset, Draw
from fovea_detr.data.flaws import refuse
from fovea_detr.data.loader import Loader
from fovea_detr.data.panoptic import as_png, inclusive_boxes, read_ids
from fovea_detr.data.readers import READERS, read_coco
from fovea_detr.data.samples import Sample, Window, crop, horizontal_flip, resize
from fovea_detr.data.shapes import generate
from fovea_detr.data.transforms import eval_transform, train_transform
from fovea_detr.data.worst import worst_batch
from fovea_detr.errors import DataError
from tests.data.builders import annotation_path, box, edit, write_coco

coco_mask: Any = pycocotools.mask  # its type hints know no lists

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "masks" / "targets.npz")
TRIANGLE = [4.0, 4.0, 30.0, 6.0, 12.0, 28.0]


def whole_sample() -> Sample:
    masks = torch.from_numpy(GOLDEN["masks"]).bool()
    boxes = torch.from_numpy(inclusive_boxes(masks.numpy()))
    return Sample(torch.zeros(3, *masks.shape[1:], dtype=torch.uint8), boxes, torch.arange(len(masks)), masks)


# ---- as published ----------------------------------------------------------------------------------------------------


def test_boxes_of_masks_are_inclusive() -> None:
    assert np.array_equal(inclusive_boxes(GOLDEN["masks"].astype(bool)), GOLDEN["boxes_xyxy"])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("flip", horizontal_flip),
        ("crop", lambda sample: crop(sample, Window(2, 1, 8, 10))),
        ("resize", lambda sample: resize(sample, (20, 25))),
    ],
)
def test_masks_go_along_as_published(name: str, change: Callable[[Sample], Sample]) -> None:
    found = change(whole_sample())
    assert found.masks is not None
    assert np.array_equal(found.masks.numpy(), GOLDEN[f"{name}_masks"])
    assert np.allclose(found.boxes_xyxy.numpy(), GOLDEN[f"{name}_boxes"], rtol=0, atol=1e-5)
    assert found.labels.tolist() == GOLDEN[f"{name}_labels"].tolist()
    assert found.size_hw == tuple(GOLDEN[f"{name}_size"])


@pytest.mark.parametrize("to", [(1, 2), (20, 25), (33, 14), (97, 201)])
def test_a_mask_is_resized_as_a_float_is(to: tuple[int, int]) -> None:
    found = resize(whole_sample(), to).masks
    assert found is not None
    wanted = functional.interpolate(torch.from_numpy(GOLDEN["masks"])[:, None].float(), to, mode="nearest")[:, 0] > 0.5
    assert torch.equal(found, wanted)


# ---- polygons and run lengths ----------------------------------------------------------------------------------------


def with_masks(root: Path, segmentations: list[Any], splits: tuple[str, ...] = ("train",)) -> Path:
    """An image of 48 x 32 pixels (width, height) with an object for each segmentation, and one without any object."""
    root = write_coco(root, ((48, 32), (32, 48)), [box(1, 1, (4, 4, 26, 24)) for _ in segmentations], splits=splits)

    def add(content: dict[str, Any]) -> None:
        for one, segmentation in zip(content["annotations"], segmentations, strict=True):
            one["segmentation"] = segmentation

    for split in splits:
        edit(root, add, split)
    return root


def read_masks(root: Path, split: str = "train") -> CocoSplit:
    return READERS["coco"](Data(root=str(root), masks=True), split)  # type: ignore[arg-type]


def runs(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed."""
    flat, counts, value = mask.ravel(order="F").tolist(), [0], 0
    for pixel in flat:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


DISC = (np.hypot(*np.mgrid[-16:16, -20:28]) < 12).astype(np.uint8)  # [32, 48]


def test_polygons_and_both_run_lengths_are_rasterised_by_pycocotools(tmp_path: Path) -> None:
    several = [TRIANGLE, [20.0, 20.0, 40.0, 20.0, 40.0, 30.0, 20.0, 30.0]]
    split = read_masks(with_masks(tmp_path, [several, runs(DISC), compressed(DISC), [[str(x) for x in TRIANGLE]]]))
    assert not split.flaws.found
    masks = CocoDataset(split, eval_transform("coco")).sample(0).masks
    assert masks is not None
    polygons = coco_mask.decode(coco_mask.frPyObjects(several, 32, 48)).any(axis=2)
    wanted = [polygons, DISC, DISC, coco_mask.decode(coco_mask.frPyObjects([TRIANGLE], 32, 48))[..., 0]]
    assert np.array_equal(masks.numpy(), np.array(wanted).astype(bool))
    assert CocoDataset(split, eval_transform("coco")).sample(1).masks.shape == (0, 48, 32)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        (None, "objects without a mask"),
        ([], "objects without a mask"),
        ([[1, 2, 30, 40]], "fewer than three points"),  # pycocotools takes it for a box
        ([TRIANGLE, [1, 2, 3, 4]], "fewer than three points"),
        ([[]], "fewer than three points"),
        ([[*TRIANGLE, 3]], "neither polygons nor run lengths"),
        ([[float("nan"), *TRIANGLE[1:]]], "neither polygons nor run lengths"),
        ([1, 2, 3, 4, 5, 6], "neither polygons nor run lengths"),
        ([TRIANGLE, [0, 0, 1e12, 0, 1e12, 1e12]], "beyond 100000 pixels"),
        ([[0, 0, -100_001, 0, 9, 9]], "beyond 100000 pixels"),
        ("polygon", "neither polygons nor run lengths"),
        ({"size": [32, 48], "counts": []}, "empty run lengths"),
        ({"size": [32, 48], "counts": [1536]}, "empty run lengths"),
        ({"size": [32, 48], "counts": ""}, "empty run lengths"),
        (compressed(np.zeros((32, 48))), "empty run lengths"),
        (runs(DISC.T), "another size than their image"),
        ({"size": [32, 48], "counts": [10, 20]}, "neither polygons nor run lengths"),
        ({"size": [32, 48], "counts": [10, -20, 1546]}, "neither polygons nor run lengths"),
        ({"size": [32, 48], "counts": compressed(DISC)["counts"][:-1] + "\u00e9"}, "neither polygons nor run lengths"),
        ({"size": [32, 48], "counts": compressed(DISC)["counts"][:-3]}, "neither polygons nor run lengths"),
    ],
)
def test_a_flawed_mask_is_one_kind_of_flaw(tmp_path: Path, segmentation: Any, kind: str) -> None:
    split = read_masks(with_masks(tmp_path, [[TRIANGLE], segmentation, [TRIANGLE]]))
    (flaw,) = split.flaws.found
    assert kind in flaw.kind
    assert (flaw.count, split.flaws.flawed_objects, len(split.labels)) == (1, 1, 2)
    assert "annotation 2" in flaw.examples[0]
    with pytest.raises(DataError, match=kind) as caught:
        refuse([split.flaws], 0.01)
    assert "\n" not in str(caught.value)
    assert not read_coco(tmp_path, "train").flaws.found, "boxes alone need no masks"


def test_boxes_alone_read_no_masks(tmp_path: Path) -> None:
    """Neither are they decoded from the file, nor are they in a sample, a target or a batch."""
    root = with_masks(tmp_path, [[TRIANGLE]])
    split = read_coco(root, "train")
    assert split.masks is None
    assert split.objects.masks is None
    assert "segmentation" not in coco_json.load_coco(annotation_path(root))["annotations"][0]
    assert isinstance(
        coco_json.load_coco(annotation_path(root), masks=True)["annotations"][0]["segmentation"], msgspec.Raw
    )
    ((_, (target,)),) = Loader(CocoDataset(split, eval_transform("coco")), seed=0, workers=0).read([[0]])
    assert target.masks is None
    assert "segmentation" not in split.ground_truth()["annotations"][0]


def test_ground_truth_has_the_masks_of_crowds_too(tmp_path: Path) -> None:
    root = with_masks(tmp_path, [[TRIANGLE], runs(DISC)])
    edit(root, lambda content: content["annotations"][1].update(iscrowd=1))
    split = read_masks(root)
    truth = split.ground_truth()["annotations"]
    assert [coco_mask.decode(one["segmentation"]).sum() for one in truth][1] == DISC.sum()
    assert len(split.labels) == 1
    assert split.first(1).ground_truth() == {**split.ground_truth(), "images": [{"id": 1}]}


# ---- through the loader ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def shapes(cache: Path, name: str, split: str = "train", *, masks: bool = True) -> CocoSplit:
    data = Data(name, cache=str(cache), recipe="tiny", train_images=24, val_images=6, masks=masks)
    return READERS[name](data, split)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("in_memory", [False, True])
def test_masks_arrive_as_they_were_sent(cache: Path, workers: int, in_memory: bool) -> None:
    dataset = CocoDataset(shapes(cache, "shapes"), train_transform("tiny", flip=0.5), in_memory=in_memory)
    loader = Loader(dataset, seed=5, workers=workers)
    batches = [[0, 3, 7], [5, 4]]
    for batch, (images, targets) in zip(batches, loader.read(batches, epoch=2), strict=True):
        for index, size_hw, target in zip(batch, images.sizes_hw.tolist(), targets, strict=True):
            alone = dataset[Draw(index, 2, 5)].target
            assert target.masks is not None
            assert alone.masks is not None
            assert target.masks.dtype == torch.bool
            assert target.masks.shape == (len(target), *size_hw)
            assert torch.equal(target.masks, alone.masks)
    loader.close()


def test_the_worst_batch_has_masks(cache: Path) -> None:
    batch, targets = worst_batch(CocoDataset(shapes(cache, "shapes"), eval_transform("tiny")), 2).made_up()
    for target, size in zip(targets, batch.sizes_hw.tolist(), strict=True):
        assert target.masks is not None
        assert target.masks.shape == (len(target), *size)


# ---- shapes ----------------------------------------------------------------------------------------------------------


def test_visible_masks_are_disjoint_and_leave_the_images_as_they_are(cache: Path) -> None:
    root = generate.generate(cache, 24, 6)
    before = {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    plain, masked, panoptic = (
        shapes(cache, "shapes", masks=False),
        shapes(cache, "shapes"),
        shapes(cache, "shapes_panoptic"),
    )
    assert before == {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    assert np.array_equal(plain.boxes_xyxy, masked.boxes_xyxy)
    samples = [CocoDataset(split, eval_transform("tiny")).sample(0) for split in (masked, panoptic)]
    (instances, segments) = (sample.masks for sample in samples)
    assert instances is not None
    assert segments is not None
    assert (segments.sum(0) == 1).all(), "every pixel is of one segment"
    assert torch.equal(segments[: len(instances)], instances), "then come the crowd and the background"
    assert samples[1].labels.tolist()[-1] == 7
    assert len(segments) == len(instances) + 2


def test_panoptic_boxes_come_from_the_masks_with_and_without_them(cache: Path) -> None:
    found = [
        CocoDataset(shapes(cache, "shapes_panoptic", masks=masks), eval_transform("tiny")).sample(3)
        for masks in (True, False)
    ]
    assert found[0].masks is not None
    assert found[1].masks is None
    assert torch.equal(found[0].boxes_xyxy, found[1].boxes_xyxy)
    for mask, (left, top, right, bottom) in zip(found[0].masks, found[0].boxes_xyxy.tolist(), strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        sides = (columns.min(), rows.min(), columns.max(), rows.max())
        assert [left, top, right, bottom] == [float(side) for side in sides]


# ---- panoptic files --------------------------------------------------------------------------------------------------


def write_panoptic(root: Path) -> Path:
    """Two images of noise; three segments in the first, a crowd among them, one of a single pixel column."""
    write_coco(root, ((48, 32), (32, 48)), categories=(1, 2, 50))
    ids = np.zeros((32, 48), np.uint32)
    ids[4:20, 4:20], ids[:, 30], ids[24:] = 300, 7, 70_000
    other = np.full((48, 32), 5, np.uint32)
    infos = [[(300, 1, 0), (7, 2, 1), (70_000, 50, 0)], [(5, 50, 0)]]
    images = [
        {"id": i, "file_name": f"{i:06d}.jpg", "width": w, "height": h} for i, (w, h) in ((1, (48, 32)), (2, (32, 48)))
    ]
    annotations = [
        {
            "image_id": i,
            "file_name": f"{i:06d}.png",
            "segments_info": [{"id": one, "category_id": c, "iscrowd": crowd} for one, c, crowd in infos[i - 1]],
        }
        for i in (1, 2)
    ]
    categories = [{"id": i, "name": str(i), "isthing": int(i < 50)} for i in (1, 2, 50)]
    for split in ("train", "val"):
        (root / f"panoptic_{split}2017").mkdir()
        for i, one in enumerate((ids, other), 1):
            as_png(one).save(root / f"panoptic_{split}2017" / f"{i:06d}.png")
        content = {"images": images, "annotations": annotations, "categories": categories}
        panoptic_json(root, split).write_text(json.dumps(content))
    return root


def panoptic_json(root: Path, split: str = "train") -> Path:
    return root / "annotations" / f"panoptic_{split}2017.json"


def read_panoptic(root: Path, split: str = "train", **options: Any) -> CocoSplit:
    return READERS["coco_panoptic"](Data("coco_panoptic", root=str(root), **options), split)  # type: ignore[arg-type]


def test_panoptic_segments_are_objects_crowds_too(tmp_path: Path) -> None:
    split = read_panoptic(write_panoptic(tmp_path), masks=True)
    assert not split.flaws.found
    sample = CocoDataset(split, eval_transform("coco")).sample(0)
    assert sample.labels.tolist() == [1, 2, 50]
    assert sample.boxes_xyxy.tolist() == [[4, 4, 19, 19], [30, 0, 30, 23], [0, 24, 47, 31]]
    assert sample.masks is not None
    assert sample.masks.sum((1, 2)).tolist() == [256, 24, 384]
    assert split.panoptic is not None
    val = read_panoptic(tmp_path, "val", masks=False)
    assert [one["category_id"] for one in val.ground_truth()["annotations"]] == [2, 50]  # of instances_val2017.json
    assert [one["id"] for one in val.first(1).ground_truth()["images"]] == [1]


def test_another_root_for_the_panoptic_files(tmp_path: Path) -> None:
    whole, images = write_panoptic(tmp_path / "panoptic"), write_coco(tmp_path / "images")
    split = read_panoptic(images, panoptic_root=str(whole))
    assert split.folder == images / "train2017"
    assert split.path == panoptic_json(whole)


def lose_a_png(root: Path) -> None:
    (root / "panoptic_train2017" / "000002.png").unlink()


def another_size(root: Path) -> None:
    Image.new("RGB", (48, 31)).save(root / "panoptic_train2017" / "000001.png")


def no_png(root: Path) -> None:
    (root / "panoptic_train2017" / "000001.png").write_bytes(b"\x89PNG")


def of_json(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def changed(root: Path) -> None:
        content = json.loads(panoptic_json(root).read_text())
        change(content)
        panoptic_json(root).write_text(json.dumps(content))

    return changed


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_a_png, r"PNGs that are not in .*panoptic_train2017: 1 \(000002\.png\)"),
        (another_size, r"another size than their image: 1 \(.*000001\.png: 48 x 31 pixels, but its image has 48 x 32"),
        (no_png, r"cannot be read: 1 \(.*000001\.png"),
        (
            of_json(lambda content: content["annotations"][0]["segments_info"].pop(2)),
            r"segments are not those of the json: 1 \(.*000001\.png: segment 70000 is missing from the json",
        ),
        (
            of_json(lambda content: content["annotations"][1]["segments_info"][0].update(id=6)),
            r"000002\.png: segment 5 is missing from the json, segment 6 of the json is not in the PNG",
        ),
        (
            of_json(lambda content: content["annotations"].pop(1)),
            r"images without panoptic annotations in panoptic_train2017\.json: 1 \(000002\.jpg\)",
        ),
        (
            of_json(lambda content: content["annotations"].append(content["annotations"][0])),
            r"images with several panoptic annotations: 1 \(000001\.jpg\)",
        ),
        (
            of_json(lambda content: content["annotations"][0]["segments_info"].append({"id": 7, "category_id": 1})),
            r"images with two segments of one id: 1 \(000001\.jpg\)",
        ),
    ],
)
def test_what_is_wrong_with_panoptic_files_is_one_line(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(write_panoptic(tmp_path))
    with pytest.raises(DataError, match=message) as caught:
        refuse([read_panoptic(tmp_path).flaws], 0.01)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["categories"][1].pop("isthing"), r"missing required field `isthing`"),
        (
            lambda content: content["categories"][1].update(isthing="0"),
            r"got `str` - at `\$\.categories\[1\]\.isthing`",
        ),
        (lambda content: content["annotations"][0]["segments_info"][1].update(area="9"), r"segments_info\[1\]\.area"),
        (lambda content: content["annotations"][0]["segments_info"][1].update(id="7"), r"segments_info\[1\]\.id"),
    ],
)
def test_a_truth_that_the_evaluator_cannot_read_is_refused_before_training(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    root = write_panoptic(tmp_path)
    content = json.loads(panoptic_json(root, "val").read_text())
    change(content)
    panoptic_json(root, "val").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"panoptic_val2017\.json: not COCO's panoptic format: .*{message}") as caught:
        read_panoptic(root, "val", masks=True)
    assert "\n" not in str(caught.value)


def test_a_segment_of_an_unknown_category_is_left_out(tmp_path: Path) -> None:
    of_json(lambda content: content["annotations"][0]["segments_info"][0].update(category_id=9))(
        write_panoptic(tmp_path)
    )
    split = read_panoptic(tmp_path, masks=True)
    assert [flaw.kind for flaw in split.flaws.found] == ["objects of a category that is not listed"]
    assert CocoDataset(split, eval_transform("coco")).sample(0).labels.tolist() == [2, 50]


@pytest.mark.parametrize("damage", [another_size, no_png])
def test_a_png_that_changes_later_is_found_when_it_is_read(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    split = read_panoptic(write_panoptic(tmp_path))
    damage(tmp_path)
    with pytest.raises(DataError, match=r"000001\.png"):
        CocoDataset(split, eval_transform("coco")).sample(0)


def test_what_is_no_panoptic_data_set_is_one_line(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    with pytest.raises(DataError, match=r"panoptic_train2017\.json: not there; data\.panoptic_root"):
        read_panoptic(root)
    write_panoptic(tmp_path / "other")
    panoptic_json(tmp_path / "other").write_text("{}")
    with pytest.raises(DataError, match="holds no segments_info"):
        read_panoptic(tmp_path / "other")


def test_ids_use_all_three_colours() -> None:
    ids = np.array([[0, 1, 255], [256, 65_535, (1 << 24) - 1]], np.uint32)
    assert np.array_equal(np.asarray(as_png(ids))[1, 2], [255, 255, 255])


def test_ids_of_a_file(tmp_path: Path) -> None:
    ids = np.arange(6, dtype=np.uint32).reshape(2, 3) * 70_001
    as_png(ids).save(tmp_path / "1.png")
    assert np.array_equal(read_ids(tmp_path / "1.png"), ids)


def test_other_masks_are_another_object(cache: Path) -> None:
    """`with_classes` and `first` keep masks and objects together."""
    split = shapes(cache, "shapes_panoptic", "val")
    part = replace(split, flaws=split.flaws).first(2)
    for index in range(2):
        whole, some = (CocoDataset(one, eval_transform("tiny")).sample(index) for one in (split, part))
        assert torch.equal(whole.masks, some.masks)  # type: ignore[arg-type]
        assert torch.equal(whole.labels, some.labels)
