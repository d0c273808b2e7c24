"""COCO's numbers of masks from either backend against pycocotools called by hand, through the written files."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fovea_detr.config.checks import CHOICES
from fovea_detr.evaluation.coco import DetectionTable, GroundTruth, coco_metrics
from fovea_detr.evaluation.detections import in_category_ids
from fovea_detr.runs.folder import SEGM_METRICS, RunFolder
from fovea_detr.training.predictions import MASKS, write_found
from tests.predictions import TWELVE

coco_mask: Any = pycocotools.mask  # its type hints know no lists

SIZE = (120, 160)


def disc(centre: np.ndarray, radius: float) -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.asarray(np.hypot(x - centre[0], y - centre[1]) < radius, np.uint8, order="F")


def made(seed: int, *, times: int, far: float = 1, other: int = 9) -> tuple[dict[str, Any], DetectionTable]:
    """Discs of all sizes on four images, crowds among them, each found `times` times, some of the other category.

    far: how far off the masks are.
    """
    rng = np.random.default_rng(seed)
    annotations, rows, image_ids, masks = [], [], [], []
    for image in (7, 1, 3, 20):
        for _ in range(6):
            centre, radius, category = rng.uniform((0, 0), SIZE[::-1]), rng.uniform(3, 60), int(rng.choice([1, 5]))
            rle = coco_mask.encode(disc(centre, radius))
            truth = {"area": float(coco_mask.area(rle)), "bbox": coco_mask.toBbox(rle).tolist(), "segmentation": rle}
            own = {"id": len(annotations) + 1, "image_id": image, "category_id": category}
            annotations.append({**own, **truth, "iscrowd": int(rng.random() < 0.1)})
            for _ in range(times):
                found = coco_mask.encode(
                    disc(centre + far * rng.normal(0, radius / 6, 2), radius * rng.uniform(0.8, 1.25))
                )
                score, label = float(np.float32(rng.random())), category if rng.random() < 0.8 else other
                rows.append(
                    [*rng.uniform(0, 90, 4).astype(np.float32).tolist(), score, label]
                )  # the box is not the mask's
                image_ids.append(image)
                masks.append(found)
    content = {"images": [{"id": i, "height": 120, "width": 160} for i in (7, 1, 3, 20)], "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "one"}, {"id": 5, "name": "five"}, {"id": 6, "name": "nothing"}]
    columns = (torch.tensor(image_ids), torch.tensor(np.array(rows, np.float64)), np.array(masks, object))
    return content, DetectionTable(*columns)


def by_pycocotools(content: dict[str, Any], results: Path) -> COCOeval:
    """From a file of results; the truth is written beside it."""
    texts = [{**one, "segmentation": as_text(one["segmentation"])} for one in content["annotations"]]
    (results.parent / "truth.json").write_text(json.dumps({**content, "annotations": texts}))
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO(str(results.parent / "truth.json"))
        evaluation = COCOeval(index, index.loadRes(str(results)), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def as_text(rle: dict[str, Any]) -> dict[str, Any]:
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.mark.parametrize("backend", CHOICES["evaluation.backend"])
@pytest.mark.parametrize("seed", range(3))
def test_masks_are_scored_as_pycocotools_does_from_the_file(tmp_path: Path, seed: int, backend: str) -> None:
    content, table = made(seed, times=20)  # 480 masks: pycocotools' area fails on more than 255 at once
    write_found(RunFolder(tmp_path), table, None)
    metrics = coco_metrics(GroundTruth(content, backend), table)
    known = [metrics[f"segm_{name}"] for name in TWELVE]
    assert known == pytest.approx(by_pycocotools(content, tmp_path / MASKS).stats.tolist(), rel=0, abs=1e-12)
    assert metrics["segm_AP"] > 0.2 > metrics["AP"]
    assert set(SEGM_METRICS) <= metrics.keys()
    assert list(metrics["segm_AP_by_category"]) == ["one", "five", "nothing"]


def test_boxes_are_scored_as_without_masks() -> None:
    content, table = made(4, times=2)
    alone = coco_metrics(GroundTruth(content), DetectionTable(table.image_ids, table.rows))
    assert not any(name.startswith("segm_") for name in alone)
    with_masks = coco_metrics(GroundTruth(content), table)
    assert {name: with_masks[name] for name in alone} == alone


def test_nothing_found_and_other_outputs() -> None:
    content, table = made(5, times=1)
    nothing = table.take(torch.zeros(0, dtype=torch.int64))
    assert coco_metrics(GroundTruth(content), nothing)["segm_AP"] == 0
    renamed = in_category_ids(table, {9: 5})
    assert renamed.masks is not None
    kept = (table.rows[:, 5] == 9).nonzero()[:, 0].tolist()
    assert [id(one) for one in renamed.masks] == [id(table.masks[place]) for place in kept]  # type: ignore[index]
