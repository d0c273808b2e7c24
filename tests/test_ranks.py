"""Several gloo ranks: the same AP whatever their number, and COCO's own numbers from the saved predictions."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fovea_detr.evaluate import METRICS
from tests.launch import only_folder, run_well

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with 23 validation images, which neither 2 nor 3 ranks nor the batch of 4 divides."""
    runs = tmp_path_factory.mktemp("ranks")
    run_well(*arguments(runs), "schedule.epochs=4", "data.train_images=320", f"runs={runs}")
    return runs


def arguments(runs: Path) -> list[str]:
    return ["experiment=tiny", "data.val_images=23", "evaluation.batch_size=4", f"data.cache={runs / 'cache'}"]


def test_any_number_of_ranks_gives_the_same_metrics(trained: Path) -> None:
    weights = only_folder(trained).checkpoint_path
    results = []
    for ranks in (1, 2, 3):
        study = f"ranks{ranks}"
        evaluate = ("mode=eval", f"weights={weights}", "data.train_images=320", "evaluation.save_predictions=true")
        run_well(*arguments(trained), *evaluate, f"runs={trained}", f"study={study}", ranks=ranks)
        folder = only_folder(trained, study)
        results.append(folder.result()["last"])  # type: ignore[index]
        predictions = json.loads((folder.path / "predictions.json").read_text())
        assert len(predictions) == 23 * 20, "20 detections from each of the 23 images, once"
        assert_equal_to_pycocotools(results[-1], folder.path / "predictions.json", trained)
    assert results[0]["AP"] > 0
    for other in results[1:]:
        for name in METRICS:
            assert other[name] == pytest.approx(results[0][name], abs=1e-12)


def assert_equal_to_pycocotools(metrics: dict[str, float], predictions: Path, runs: Path) -> None:
    (annotations,) = (runs / "cache").rglob("instances_val2017.json")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(predictions)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    for name, value in zip(METRICS, evaluation.stats, strict=True):
        assert metrics[name] == pytest.approx(float(value), abs=1e-12)
