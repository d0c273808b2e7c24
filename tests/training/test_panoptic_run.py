"""Runs on panoptic data: the same numbers for any number of ranks, and the referees' on the files that are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fovea_detr.data.panoptic import read_ids
from fovea_detr.runs.folder import QUALITIES, SEGM_METRICS, RunFolder
from tests.launch import only_folder, run_well

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with 11 validation images, evaluated by 1, 2 and 3 ranks."""
    runs = tmp_path_factory.mktemp("panoptic")
    common = ("experiment=tiny_masks", "data.val_images=11", "data.train_images=96", f"data.cache={runs / 'cache'}")
    common += (f"runs={runs}", "evaluation.timed_images=1")
    run_well(*common, "schedule.epochs=3", "evaluation.every=3", "study=trained")
    weights = only_folder(runs, "trained").checkpoint_path
    for ranks in (1, 2, 3):
        evaluate = ("mode=eval", f"weights={weights}", "evaluation.save_predictions=true", f"study=ranks{ranks}")
        run_well(*common, *evaluate, ranks=ranks)
    return runs


def evaluated(runs: Path, ranks: int) -> RunFolder:
    return only_folder(runs, f"ranks{ranks}")


def test_any_number_of_ranks_gives_the_same_numbers_and_files(runs: Path) -> None:
    first, *others = ((evaluated(runs, ranks).result() or {})["last"] for ranks in (1, 2, 3))
    assert {*SEGM_METRICS, *QUALITIES} <= first.keys()
    assert first["PQ"] > 0
    assert others == [first, first]
    for name in ("predictions.json", "predictions_segm.json", "predictions_panoptic.json"):
        assert len({(evaluated(runs, ranks).path / name).read_bytes() for ranks in (1, 2, 3)}) == 1
    trained = (only_folder(runs, "trained").result() or {})["last"]
    assert {name: first[name] for name in (*SEGM_METRICS, *QUALITIES)} == {
        name: trained[name] for name in (*SEGM_METRICS, *QUALITIES)
    }


def test_panoptic_quality_is_the_formulas_on_the_written_files(runs: Path) -> None:
    """PQ = sum of IoU / (TP + FP / 2 + FN / 2), from the jsons and the PNGs alone."""
    folder = evaluated(runs, 1)
    (truth_root,) = (runs / "cache").glob("*-masks")
    truth = json.loads((truth_root / "annotations" / "panoptic_val2017.json").read_text())
    found = json.loads((folder.path / "predictions_panoptic.json").read_text())
    by_image = {one["image_id"]: one for one in found["annotations"]}
    counts: dict[int, list[float]] = {one["id"]: [0.0, 0.0, 0.0, 0.0] for one in truth["categories"]}
    for one in truth["annotations"]:
        other = by_image[one["image_id"]]
        true_ids = read_ids(truth_root / "panoptic_val2017" / one["file_name"])
        ids = read_ids(folder.path / "predictions_panoptic" / other["file_name"])
        count_image((one["segments_info"], true_ids), (other["segments_info"], ids), counts)
    qualities = [iou / (tp + fp / 2 + fn / 2) for iou, tp, fp, fn in counts.values() if tp + fp + fn]
    stored = (folder.result() or {})["last"]
    assert stored["PQ"] == pytest.approx(np.mean(qualities), rel=0, abs=1e-12)


def count_image(truth: Any, found: Any, counts: dict[int, list[float]]) -> None:
    """Add the IoU, TP, FP and FN of one image, every pair of segments compared. There is no void in these images."""
    (true_segments, true_ids), (segments, ids) = truth, found
    left = [one for one in true_segments if not one["iscrowd"]]
    for one in segments:
        mine = ids == one["id"]
        pairs = [
            (iou_of(mine, true_ids == true["id"]), true) for true in left if true["category_id"] == one["category_id"]
        ]
        iou, match = max(pairs, key=lambda pair: pair[0], default=(0.0, None))
        if match is not None and iou > 0.5:
            left.remove(match)
            counts[one["category_id"]][0] += iou
            counts[one["category_id"]][1] += 1
            continue
        crowd = [true for true in true_segments if true["iscrowd"] and true["category_id"] == one["category_id"]]
        ignored = sum((mine & (true_ids == true["id"])).sum() for true in crowd[-1:]) / mine.sum()
        counts[one["category_id"]][2] += float(ignored <= 0.5)
    for true in left:
        counts[true["category_id"]][3] += 1


def iou_of(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())
