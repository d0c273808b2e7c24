"""`python -m fovea_detr.evaluation matches` on runs without matches, and what a run itself keeps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fovea_detr.compose import load_config
from fovea_detr.evaluation.__main__ import main
from fovea_detr.evaluation.matches import read_matches
from fovea_detr.experiment import run as run_point
from fovea_detr.runs.folder import METRICS, RunFolder

TINY = ["experiment=tiny", "data.train_images=16", "data.val_images=12", "schedule.epochs=2", "schedule.batch_size=8"]
TINY += ["data.workers=0", "evaluation.timed_images=1", "device=cpu", "study=s"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that has kept everything."""
    runs = tmp_path_factory.mktemp("runs")
    words = [*TINY, "evaluation.keep_matches=1", "evaluation.save_predictions=true", f"runs={runs}"]
    run_point(load_config(words), "base")
    return runs / "s" / "base"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it without its matches."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    (folder / "matches.npz").unlink()
    return folder


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["matches", *words]) == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_a_run_keeps_the_matches_of_its_last_evaluation_and_those_between(trained: Path) -> None:
    history, result = RunFolder(trained).history(), RunFolder(trained).result()
    assert result is not None
    assert set(METRICS) <= result["last"].keys()
    assert read_matches(trained).ap == result["last"]["AP"]
    assert read_matches(trained, "matches_1.npz").ap == history[0]["AP"]
    assert not (trained / "matches_2.npz").exists()
    provenance = RunFolder(trained).provenance()
    assert provenance is not None
    assert provenance["evaluator"] == f"hotcoco {provenance['packages']['hotcoco']}"


@pytest.mark.slow
def test_matches_are_made_from_predictions_or_the_checkpoint(trained: Path, run: Path) -> None:
    """The same ones that the run would have kept."""
    kept = read_matches(trained)
    for source in ("predictions", "checkpoint"):
        main(["matches", str(run), "--device", "cpu"])
        made = read_matches(run)
        assert made.source == source
        for name, column in vars(kept).items():
            assert name == "source" or np.array_equal(column, vars(made)[name]), (source, name)
        (run / "matches.npz").unlink()
        (run / "predictions.json").unlink(missing_ok=True)


@pytest.mark.slow
def test_what_cannot_be_made_is_one_clear_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = json.loads((run / "predictions.json").read_text())
    (run / "predictions.json").write_text(json.dumps([{**predictions[0], "image_id": -7}]))
    assert "damaged (ValueError('an image or a category of another split'))" in refused(capsys, str(run))
    (run / "predictions.json").write_text(json.dumps(predictions[: len(predictions) // 4]))
    result = json.loads((run / "result.json").read_text())
    result["last"]["AP"] += 0.01
    (run / "result.json").write_text(json.dumps(result))
    assert "of another run" in refused(capsys, str(run))
    assert not (run / "matches.npz").exists()
    (run / "predictions.json").unlink()
    assert "of another run" in refused(capsys, str(run), "--device", "cpu")
    (run / "checkpoint.pt").write_bytes(b"no checkpoint")
    assert "its checkpoint could not be evaluated: " in refused(capsys, str(run), "--device", "cpu")
    (run / "checkpoint.pt").unlink()
    assert "neither predictions.json nor checkpoint.pt" in refused(capsys, str(run))
    (run / "result.json").unlink()
    assert "no result.json: it is no finished run" in refused(capsys, str(run))


@pytest.mark.slow
def test_a_run_that_cannot_have_matches_does_not_stop_the_others(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unfinished").mkdir()
    assert "it is no finished run" in refused(capsys, str(tmp_path / "unfinished"), str(run))
    assert read_matches(run).ap >= 0
