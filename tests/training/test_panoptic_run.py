"""Runs on panoptic data: the same numbers for any number of ranks, and the referees' on the files that are written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.statistics.images import resample_once
from fovea_detr.data.panoptic import read_ids
from fovea_detr.evaluation.__main__ import main
from fovea_detr.evaluation.matches import MATCH_FILES
from fovea_detr.runs.folder import QUALITIES, SEGM_METRICS, RunFolder
from tests.launch import only_folder, run_well

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with 11 validation images, evaluated by 1, 2 and 3 ranks."""
    runs = tmp_path_factory.mktemp("panoptic")
    common = ("experiment=tiny_masks", "data.val_images=11", "data.train_images=96", f"data.cache={runs / 'cache'}")
    common += (f"runs={runs}", "evaluation.timed_images=1")
    often = ("schedule.epochs=3", "evaluation.every=2", "evaluation.keep_matches=2")
    run_well(*common, *often, "study=trained")
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
    predictions = [name for file in MATCH_FILES for name in file.predictions if name.endswith(".json")]
    for name in (*predictions, *(file.name() for file in MATCH_FILES)):
        assert len({(evaluated(runs, ranks).path / name).read_bytes() for ranks in (1, 2, 3)}) == 1
    trained = (only_folder(runs, "trained").result() or {})["last"]
    assert {name: first[name] for name in (*SEGM_METRICS, *QUALITIES)} == {
        name: trained[name] for name in (*SEGM_METRICS, *QUALITIES)
    }


def test_all_images_once_are_the_numbers_of_the_result(runs: Path) -> None:
    """And the matches between two evaluations are kept under the number of the epoch."""
    folder = only_folder(runs, "trained")
    for file in MATCH_FILES:
        matches, last = file.read(folder.path), (folder.result() or {})["last"]
        once = resample_once(matches, np.ones(11), file.metrics)
        found = {name: -1.0 if np.isnan(value) else value for name, value in once.items()}
        assert found == pytest.approx({name: last[name] for name in found}, rel=0, abs=1e-12)
        assert {path.name for path in folder.path.glob("matches*")} == {
            name for one in MATCH_FILES for name in (one.name(), one.name(2))
        }


@pytest.mark.parametrize("has_predictions", [True, False])
def test_matches_are_made_from_predictions_or_the_checkpoint(
    runs: Path, tmp_path: Path, has_predictions: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same ones that the run would have kept."""
    kept = only_folder(runs, "trained").path
    run = tmp_path / "copy"
    shutil.copytree(kept, run)
    shutil.copy(run / "matches.npz", run / "matches_panoptic.npz")
    (run / "matches_segm.npz").write_bytes(b"damaged")
    (run / "matches.npz").unlink()
    names = [name for file in MATCH_FILES for name in file.predictions]
    source = "checkpoint"
    if has_predictions:
        source = "predictions"
        for name in names:
            (shutil.copytree if Path(name).suffix == "" else shutil.copy)(evaluated(runs, 1).path / name, run / name)
        (run / "checkpoint.pt").unlink()
    assert main(["matches", str(run), "--device", "cpu"]) == 0
    for file in MATCH_FILES:
        made = file.read(run)
        assert made.source == source
        for name, column in vars(file.read(kept)).items():
            assert name == "source" or np.array_equal(column, vars(made)[name]), (file.stem, name)
    assert main(["matches", str(run)]) == 0
    assert "has its matches_panoptic.npz" in capsys.readouterr().out


def test_matches_that_cannot_be_made_are_one_clear_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(evaluated(runs, 1).path, run)
    (run / "matches_segm.npz").unlink()
    (run / "matches_panoptic.npz").unlink()
    (run / "predictions_segm.json").write_text("[{}]")
    assert main(["matches", str(run)]) == 2
    assert "predictions_segm.json: damaged (KeyError" in capsys.readouterr().err
    (run / "predictions_segm.json").unlink()
    assert main(["matches", str(run)]) == 2
    line = "neither predictions_segm.json nor checkpoint.pt: its matches_segm.npz cannot be made"
    assert line in capsys.readouterr().err
    assert (run / "matches_panoptic.npz").exists()
    shutil.rmtree(run / "predictions_panoptic")
    (run / "matches_panoptic.npz").unlink()
    assert main(["matches", str(run)]) == 2
    assert "neither predictions_segm.json, predictions_panoptic.json nor checkpoint.pt" in capsys.readouterr().err


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
