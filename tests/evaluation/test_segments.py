"""What each image adds to panoptic quality, against the published definition step by step; the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fovea_detr.data.panoptic import PanopticFiles, read_ids
from fovea_detr.errors import RunFolderError
from fovea_detr.evaluation.matches import OF_BOXES, OF_SEGMENTS, Segments, read_segments, write_matches
from fovea_detr.evaluation.quality import PanopticMap, PanopticTruth
from fovea_detr.runs.folder import RunFolder
from tests.evaluation.test_matches import made_matches

IMAGES = (7, 1, 3, 581_929, 20, 4)
CATEGORIES = [{"id": i, "name": f"category {i}", "isthing": int(i < 50)} for i in (90, 1, 17, 44, 60, 99)]
SIZE = (48, 64)
Counts = dict[int, list[float]]  # by category the sum of IoU, TP, FP, FN


def made(folder: Path, seed: int) -> tuple[PanopticTruth, list[PanopticMap]]:
    """Rectangles with void and crowds between them, found shifted, some as another category, some not at all.

    No segment is of the category 99; there is nothing true in the last image, and nothing found in the fourth.
    """
    rng = np.random.default_rng(seed)
    annotations, maps = [], []
    for image in IMAGES:
        ids = drawn(rng, 0 if image == IMAGES[-1] else 6)
        segments = [{**one, "iscrowd": int(rng.random() < 0.15)} for one in segments_of(ids, rng)]
        write_png(folder / f"{image}.png", ids)
        annotations.append({"image_id": image, "file_name": f"{image}.png", "segments_info": segments})
        maps.append(PanopticMap.of(image, *found_of(ids, segments, rng, hidden=image == IMAGES[3])))
    sized = [{"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in IMAGES]
    (folder / "truth.json").write_text(
        json.dumps({"images": sized, "categories": CATEGORIES, "annotations": annotations})
    )
    return PanopticTruth(PanopticFiles(folder / "truth.json", folder), IMAGES), maps[::-1]


def drawn(rng: np.random.Generator, number: int) -> np.ndarray:
    ids = np.zeros(SIZE, np.uint32)
    for k in range(1, number + 1):
        y, x = rng.integers(0, 36), rng.integers(0, 48)
        ids[y : y + rng.integers(6, 30), x : x + rng.integers(6, 30)] = k
    return ids


def segments_of(ids: np.ndarray, rng: np.random.Generator) -> list[dict[str, Any]]:
    known = [int(k) for k in np.unique(ids) if k]
    labels = rng.choice([1, 17, 44, 60, 90], len(known)).tolist()
    return [
        {"id": k, "category_id": label, "area": int((ids == k).sum())} for k, label in zip(known, labels, strict=True)
    ]


def found_of(ids: np.ndarray, segments: list[dict[str, Any]], rng: np.random.Generator, *, hidden: bool) -> Any:
    """The map shifted by up to two pixels, with some segments lost, and one that is not there."""
    moved = np.roll(ids, rng.integers(-2, 3, 2), (0, 1))
    labels = {one["id"]: one["category_id"] if rng.random() < 0.8 else 17 for one in segments} | {100: 1}
    moved[:8, :8] = 100
    moved[np.isin(moved, [k for k in labels if rng.random() < 0.15])] = 0
    if hidden:
        moved[:] = 0
    return moved, [{"id": int(k), "category_id": labels[int(k)]} for k in np.unique(moved) if k]


def write_png(path: Path, ids: np.ndarray) -> None:
    path.write_bytes(PanopticMap.of(0, ids, []).png)


def empty(one: PanopticMap) -> dict[str, Any]:
    blank = PanopticMap.of(one.image_id, np.zeros(SIZE, int), [])
    return {"png": blank.png, "segments_info": []}


def segments(folder: Path, seed: int) -> tuple[Segments, dict[str, Any]]:
    truth, maps = made(folder, seed)
    metrics = truth.metrics(maps)
    return truth.by_image(maps, metrics["PQ"]), metrics


# ---- the published definition ----------------------------------------------------------------------------------------


def of_images(truth: PanopticTruth, maps: list[PanopticMap], folder: Path) -> Iterator[tuple[int, Counts]]:
    """Image by image in the order of the ids."""
    annotations = {one["image_id"]: one for one in truth.content["annotations"]}
    for one in sorted(maps, key=lambda one: one.image_id):
        (folder / "found").write_bytes(one.png)
        true = read_ids(folder / f"{one.image_id}.png")
        found = read_ids(folder / "found")
        yield one.image_id, counted(true, annotations[one.image_id]["segments_info"], found, one.segments_info)


def counted(true_ids: np.ndarray, true: list[Any], ids: np.ndarray, found: list[Any]) -> Counts:
    """Kirillov et al. 2019, section 4, with the rules of section 4.2 for void pixels and for groups (crowds)."""
    counts: Counts = {one["id"]: [0.0, 0, 0, 0] for one in CATEGORIES}
    objects = [one for one in true if not one["iscrowd"]]
    matched: list[int] = []
    for one in found:
        mine, own = ids == one["id"], counts[one["category_id"]]
        alike = [other for other in objects if other["category_id"] == one["category_id"]]
        ious = {other["id"]: iou(mine, true_ids == other["id"], true_ids == 0) for other in alike}
        hits = [key for key, value in ious.items() if value > 0.5]
        if hits:
            matched += hits
            own[0] += ious[hits[0]]
            own[1] += 1
            continue
        crowds = [other["id"] for other in true if other["iscrowd"] and other["category_id"] == one["category_id"]]
        hidden = mine & ((true_ids == 0) | np.isin(true_ids, crowds[-1:]))  # the last crowd, as panopticapi has it
        own[2] += int(hidden.sum() / mine.sum() <= 0.5)
    for other in objects:
        counts[other["category_id"]][3] += int(other["id"] not in matched)
    return counts


def iou(mine: np.ndarray, theirs: np.ndarray, void: np.ndarray) -> float:
    return float((mine & theirs).sum() / ((mine & ~void) | theirs).sum())


@pytest.mark.parametrize("seed", range(4))
def test_every_image_is_counted_as_published(seed: int, tmp_path: Path) -> None:
    truth, maps = made(tmp_path, seed)
    found = truth.by_image(maps, 0.0)
    assert found.image_ids.tolist() == sorted(IMAGES)
    assert found.category_ids.tolist() == [1, 17, 44, 60, 90, 99]
    assert found.category_names.tolist() == [f"category {i}" for i in (1, 17, 44, 60, 90, 99)]
    assert found.things.tolist() == [True, True, True, False, False, False]
    stored = {
        (int(found.image_ids[i]), int(found.category_ids[k])): numbers
        for i, k, *numbers in zip(
            *(column.tolist() for column in (found.images, found.labels, found.ious, found.tp, found.fp, found.fn)),
            strict=True,
        )
    }
    expected = {
        (image, category): numbers
        for image, counts in of_images(truth, maps, tmp_path)
        for category, numbers in counts.items()
        if any(numbers)
    }
    assert list(stored) == list(dict(sorted(expected.items())))
    for key, numbers in expected.items():
        assert stored[key] == pytest.approx(numbers, rel=0, abs=1e-12), key


def test_all_kinds_of_counts_were_made(tmp_path: Path) -> None:
    found, metrics = segments(tmp_path, 0)
    assert min(found.tp.sum(), found.fp.sum(), found.fn.sum()) > 2
    assert 0.1 < metrics["PQ"] < 0.9
    truth, _ = made(tmp_path, 0)
    assert any(one["iscrowd"] for image in truth.content["annotations"] for one in image["segments_info"])


# ---- the file --------------------------------------------------------------------------------------------------------


def test_what_is_read_is_what_was_written_and_is_checked(tmp_path: Path) -> None:
    written, _ = segments(tmp_path, 1)
    write_matches(RunFolder(tmp_path), written, OF_SEGMENTS.name())
    (tmp_path / "result.json").write_text(json.dumps({"last": {"AP": 0.4, "PQ": written.pq}}))
    found = read_segments(tmp_path)
    for name, column in vars(written).items():
        assert np.array_equal(column, vars(found)[name]), name
    (tmp_path / "result.json").write_text(json.dumps({"last": {"AP": 0.4, "PQ": written.pq + 2e-12}}))
    with pytest.raises(RunFolderError, match=r"matches_panoptic\.npz: it has PQ .*: of another run"):
        read_segments(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"last": {"AP": 0.4}}))
    with pytest.raises(RunFolderError, match=r"result\.json nan: of another run"):
        read_segments(tmp_path)


def test_a_file_of_boxes_is_none_of_segments(tmp_path: Path) -> None:
    write_matches(RunFolder(tmp_path), made_matches(), OF_SEGMENTS.name())
    with pytest.raises(RunFolderError, match=r"matches_panoptic\.npz: damaged \(it holds image_ids, .*; make it again"):
        read_segments(tmp_path)
    write_matches(RunFolder(tmp_path), segments(tmp_path, 0)[0], OF_BOXES.name())
    with pytest.raises(RunFolderError, match=r"matches\.npz: damaged \(it holds"):
        OF_BOXES.read(tmp_path)
