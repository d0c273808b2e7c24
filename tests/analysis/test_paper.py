"""Figure 1 of a paper: its numbers, its heads, and what it says when a part is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from analysis import load, paper, plots
from analysis.figures.drawing import PAGE_INCHES
from analysis.tables.cells import Value
from fovea_detr.build import build_model
from fovea_detr.runs.folder import RunFolder
from fovea_detr.training import checkpoint
from tests.model.builders import small_config

ERRORS = {"Cls": [0.02, 0.04], "Loc": [0.1]}


def finished(path: Path, model: str, cache: Path, ap: float) -> RunFolder:
    """A run of two epochs with random weights."""
    sizes = ["data.train_images=1", "data.val_images=3", f"data.cache={cache}", "data.num_classes=7"]
    config = small_config(f"model={model}", "data=shapes", *sizes)
    folder = RunFolder(path)
    torch.manual_seed(0)
    path.mkdir(parents=True)
    folder.write_config(OmegaConf.to_yaml(OmegaConf.structured(config)))
    checkpoint.save(folder, {"model": build_model(config).state_dict(), "optimizer": {}})
    folder.write_history([{"epoch": 1, "loss": 2.0, "AP": ap / 2}, {"epoch": 2, "loss": 1.0, "AP": ap}])
    folder.write_result({"last": {"AP": ap}})
    folder.write_state("done")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for model, ap in (("fovea_tiny", 0.4), ("detr_focal_tiny", 0.2)):
        finished(root / "mystudy" / f"model={model}", model, root / "cache", ap)
    return root


def test_the_command_draws_curves_and_heads_and_names_what_it_lacks(runs, tmp_path, capsys):
    assert plots.main(["mystudy", "--runs", str(runs), "--figure", "paper", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"paper.pdf", "paper.svg", "paper.png"}
    reason = "(b) left out: no finished run has matches: python -m fovea_detr.evaluation matches RUN\n"
    assert capsys.readouterr().err == reason


def test_its_numbers_are_those_of_the_rows(runs, monkeypatch):
    monkeypatch.setattr(paper, "errors_of", lambda row: ERRORS if "fovea" in row.label else {})
    study = load(runs)
    study.rows[0].cells["AP_published"] = Value(0.41)
    figure, left_out = paper.paper(study)
    assert left_out == []
    assert figure.get_figwidth() == PAGE_INCHES
    above, below = figure.subfigs
    curves, errors = above.axes
    ends = {float(np.asarray(line.get_ydata())[-1]) for line in curves.lines}
    assert ends == {40.0, 20.0, 41.0}
    assert [line.get_ydata()[0] for line in curves.lines if line.get_linestyle() == "--"] == [41.0]  # pyright: ignore
    assert [bar.get_height() for bar in errors.patches] == pytest.approx([3, 10])  # pyright: ignore
    titles = [part.get_suptitle().partition(": ")[0] for part in below.subfigs]
    assert titles == ["(c) detr_focal_tiny", "fovea_tiny"]
    panels = [axes for part in below.subfigs for axes in part.axes if axes.get_label() != "<colorbar>"]
    assert len(panels) == 2 * 2, "two heads of each model"
    assert len({(image.norm.vmin, image.norm.vmax) for axes in panels for image in axes.images[1:]}) == 1


def test_a_study_without_a_plain_run_draws_the_fovea_alone(runs, tmp_path):
    finished(tmp_path / "mystudy" / "seed=0", "fovea_tiny", runs / "cache", 0.4)
    figure, left_out = paper.paper(load(tmp_path))
    assert "(c) without plain: no finished plain run has a checkpoint" in left_out
    assert len(figure.subfigs[1].subfigs) == 1


def test_plain_detr_is_asked_for_the_object_that_the_fovea_found(runs):
    shown, _ = paper.heads_of(load(runs).rows, "2")
    (_, plain, asked), (_, _, found) = shown
    boxes = np.stack([one.box_xyxy for one in plain.marked(range(7))])
    low, high = (np.maximum(boxes[:, :2], found.box_xyxy[:2]), np.minimum(boxes[:, 2:], found.box_xyxy[2:]))
    shared = (high - low).clip(0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    iou = shared / (areas + (found.box_xyxy[2:] - found.box_xyxy[:2]).prod() - shared)
    assert iou[asked.query] == pytest.approx(iou.max())


def test_an_unknown_image_is_one_line(runs, capsys):
    assert plots.main(["mystudy", "--runs", str(runs), "--figure", "paper", "--image", "9"]) == 1
    assert "no image 9" in capsys.readouterr().err
