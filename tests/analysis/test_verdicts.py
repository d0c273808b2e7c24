"""Verdicts on masks and panoptic quality as on boxes, from run folders with the matches of all three."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis import compare, load
from analysis.statistics.images import resample
from fovea_detr.evaluation.coco import GroundTruth, coco_metrics
from fovea_detr.evaluation.matches import MATCH_FILES, OF_BOXES, OF_MASKS, OF_SEGMENTS, MatchFile, write_matches
from fovea_detr.evaluation.matching import matches_of
from fovea_detr.runs.folder import METRICS, QUALITIES, SEGM_METRICS
from tests.evaluation import test_segm, test_segments

SCORES = ("AP", "segm_AP", "PQ")
ASK = ("--metrics", "AP,segm_AP,PQ", "--baseline", "type1")


@pytest.fixture
def study(write, tmp_path: Path) -> list[Path]:
    """Two rows of three seeds on one split: every run has lost some of the detections and of the panoptic maps."""
    content, table = test_segm.made(0, times=5)
    assert table.masks is not None
    table.rows[:, :4] = torch.tensor([test_segm.coco_mask.toBbox(one).tolist() for one in table.masks])
    truth = GroundTruth(content)
    (tmp_path / "panoptic").mkdir()
    panoptic, maps = test_segments.made(tmp_path / "panoptic", 0)
    paths = []
    for i in range(6):
        lost = np.random.default_rng(i).random(len(table)) < (0.6 if i < 3 else 0.1)
        found = table.take(torch.from_numpy(~lost).nonzero()[:, 0])
        segments = [one._replace(**test_segments.empty(one)) if k == i % 6 else one for k, one in enumerate(maps)]
        metrics = coco_metrics(truth, found) | panoptic.metrics(segments)
        folder = write(f"dynamic_scale=type{1 + i // 3}", f"seed={i % 3}", result={"last": metrics})
        write_matches(folder, matches_of(truth, found, metrics["AP"]))
        masks = matches_of(truth, found, metrics["segm_AP"], kind="segm")
        write_matches(folder, masks, OF_MASKS.name())
        write_matches(folder, panoptic.by_image(segments, metrics["PQ"]), OF_SEGMENTS.name())
        paths.append(folder.path)
    return paths


def parts(lines: list[list[str]]) -> dict[str, str]:
    """The line of --why of each metric."""
    text = "\n".join("  ".join(line) for line in lines)
    return {name: found[0] for name in SCORES if (found := re.findall(rf"^{name} of type2: .*$", text, re.MULTILINE))}


def images_interval(paths: list[Path], file: MatchFile) -> str:
    """Of the second row minus the first."""
    matches = [file.read(path) for path in paths]
    once = np.stack([resample(one, file.metrics[:1], 1000, 0)["values"][0] for one in matches])
    low, high = 100 * np.quantile(once[3:].mean(0) - once[:3].mean(0), [0.025, 0.975])
    return f"images [{low:+.2f}, {high:+.2f}]"


def test_masks_and_panoptic_quality_have_intervals_of_images(study: list[Path], show) -> None:
    lines = show(*ASK, "--why", "--plan", "30")
    told = parts(lines)
    for file in MATCH_FILES:
        assert images_interval(study, file) in told[file.score]
        assert "; both [" in told[file.score]
    text = str(lines)
    assert "have no matches" not in text
    for name in SCORES:
        assert re.search(rf"plan: 30 {name} at 80 % power: .* images' standard error \d+\.\d\d {name}\)", text), text
    frame = load(study[0].parent).compare("type1", "type2", "PQ,segm_AP")
    assert f"{100 * frame.loc['PQ', 'difference']:+.2f}" in told["PQ"]


@pytest.mark.parametrize("file", MATCH_FILES, ids=lambda file: file.stem)
def test_a_run_without_a_file_is_told_and_leaves_the_seeds_alone(file: MatchFile, study: list[Path], show) -> None:
    (study[4] / file.name()).unlink()
    lines = show(*ASK, "--why")
    line = f"{file.score}: 1 of 6 runs have no {file.name()}: their differences are by the seeds alone; "
    assert [f"{line}python -m fovea_detr.evaluation matches RUN makes it"] in lines
    assert {name for name, text in parts(lines).items() if "; images [" in text} == {*SCORES} - {file.score}
    assert "; seeds [" in parts(lines)[file.score]


@pytest.mark.parametrize("file", MATCH_FILES, ids=lambda file: file.stem)
def test_a_damaged_file_is_told_and_takes_no_other_metric_with_it(
    file: MatchFile, study: list[Path], show, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (study[4] / file.name()).write_bytes(b"damaged")
    lines = show(*ASK, "--why")
    assert {name for name, text in parts(lines).items() if "; images [" in text} == {*SCORES} - {file.score}
    rows = ["type1", "type2", "--runs", str(tmp_path), "--metrics", "AP,segm_AP,PQ"]
    assert compare.main(rows) == 0
    assert f"{study[4]}: {study[4] / file.name()}: damaged" in capsys.readouterr().out


def test_two_rows_are_compared_by_masks_as_by_boxes(
    study: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["type1", "type2", "--runs", str(tmp_path), "--metrics"]
    assert compare.main([*rows, "segm_AP,PQ"]) == 0
    text = capsys.readouterr().out
    for name in ("segm_AP", "PQ", "AP_small", "segm_AP_large"):
        assert re.search(rf"^ +{name} +[+-]\d+\.\d\d +\[", text, re.MULTILINE), (name, text)
    assert "\nsegm_AP50 lost to each of TIDE's error types, less is better:" in text
    assert compare.main([*rows, "AP"]) == 0
    text = capsys.readouterr().out
    assert "segm_" not in text.partition("by epoch")[0]
    (study[4] / OF_BOXES.name()).unlink()
    assert compare.main([*rows, "AP"]) == 0
    assert "AP: 1 of 6 runs have no matches.npz: their differences are by the seeds alone" in capsys.readouterr().out


def test_all_metrics_are_those_that_the_runs_have(study: list[Path], write, tmp_path: Path) -> None:
    frame = load(study[0].parent).table(metrics="all")
    held = [name for name in (*METRICS, *SEGM_METRICS, *QUALITIES) if name in frame]
    assert [name for name in held if name in METRICS] == list(METRICS)
    assert {"segm_AP", "segm_AP90", "PQ", "SQ_stuff"} <= set(held)
    assert all(frame[name].notna().any() for name in held if name not in METRICS)
    write("dynamic_scale=type1", "seed=0", study="boxes")
    only = load(tmp_path / "boxes").table(metrics="all")
    assert [name for name in only if name in (*METRICS, *SEGM_METRICS, *QUALITIES)] == list(METRICS)
    both = compare.Options("all")
    assert both.metrics_of([]) == METRICS
