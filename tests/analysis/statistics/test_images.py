"""Resamples of the images against pycocotools, and hotcoco of panoptic segments, on a data set in which each image
really stands that often.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.statistics import images
from analysis.statistics.images import all_weights, resample, resample_once, resamples_of
from fovea_detr.errors import RunFolderError
from fovea_detr.evaluation.coco import GroundTruth, coco_metrics
from fovea_detr.evaluation.matches import OF_BOXES, OF_MASKS, OF_SEGMENTS, Matches, write_matches
from fovea_detr.evaluation.matching import matches_of
from fovea_detr.evaluation.quality import quality_metrics, quality_of_files
from fovea_detr.runs.folder import COCO_METRICS, METRICS, PANOPTIC_METRICS, QUALITIES, SEGM_METRICS, RunFolder
from tests.evaluation import test_segm, test_segments
from tests.evaluation.test_coco import MADE, Results, by_pycocotools, table_of
from tests.predictions import TWELVE

CASES = [(kind, seed) for kind in MADE for seed in range(2)]


def evaluated(kind: str, seed: int = 0) -> tuple[Matches, dict[str, Any]]:
    truth, results = MADE[kind](seed)
    index, table = GroundTruth(truth), table_of(results)
    metrics = coco_metrics(index, table)
    return matches_of(index, table, metrics["AP"]), metrics


def as_coco(metrics: dict[str, float]) -> dict[str, float]:
    return {name: -1.0 if np.isnan(value) else value for name, value in metrics.items()}


def copied(truth: dict[str, Any], results: Results, times: np.ndarray) -> tuple[dict[str, Any], Results]:
    """Every image, in the order of the ids, as often as `times` says, the copies next to each other."""
    order = sorted(image["id"] for image in truth["images"])
    owners = [image for image, count in zip(order, times.astype(int).tolist(), strict=True) for _ in range(count)]

    def copies(rows: Results) -> Results:
        return [{**row, "image_id": new} for new, old in enumerate(owners, 1) for row in rows if row["image_id"] == old]

    objects = [{**row, "id": i} for i, row in enumerate(copies(truth["annotations"]), 1)]
    known = {image["id"]: image for image in truth["images"]}
    images = [{**known[old], "id": new} for new, old in enumerate(owners, 1)]
    return {**truth, "images": images, "annotations": objects}, copies(results)


def without_ties(results: Results) -> Results:
    """Other scores in the order in which COCOeval takes these: the copies of a detection then follow one another."""
    order = sorted(range(len(results)), key=lambda i: (-results[i]["score"], results[i]["image_id"], i))
    scores = {i: 1 - rank / len(order) for rank, i in enumerate(order)}
    return [{**row, "score": scores[i]} for i, row in enumerate(results)]


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_all_images_once_are_the_evaluators_numbers(kind: str, seed: int) -> None:
    found, metrics = evaluated(kind, seed)
    once = as_coco(resample_once(found, np.ones(len(found.image_ids))))
    assert once == pytest.approx({name: metrics[name] for name in METRICS}, rel=0, abs=1e-12)


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_a_resample_is_pycocotools_on_copied_images(kind: str, seed: int, tmp_path: Path) -> None:
    (truth, results), (found, _) = MADE[kind](seed), evaluated(kind, seed)
    for weights in next(all_weights(len(found.image_ids), 4, seed)).T:
        evaluation = by_pycocotools(*copied(truth, without_ties(results), weights), tmp_path)
        once = as_coco(resample_once(found, weights))
        assert [once[name] for name in TWELVE] == pytest.approx(evaluation.stats.tolist(), rel=0, abs=1e-12)
        precision = evaluation.eval["precision"][8, :, :, 0, 2]
        ninety = precision[precision > -1].mean() if (precision > -1).any() else -1.0
        assert once["AP90"] == pytest.approx(ninety, rel=0, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_resampled_as_pycocotools_on_copied_images(seed: int, tmp_path: Path) -> None:
    content, table = test_segm.made(seed, times=5)
    metrics = coco_metrics(GroundTruth(content), table)
    found = matches_of(GroundTruth(content), table, metrics["segm_AP"], kind="segm")
    once = as_coco(resample_once(found, np.ones(4), OF_MASKS.metrics))
    assert once == pytest.approx({name: metrics[name] for name in SEGM_METRICS}, rel=0, abs=1e-12)
    for weights in next(all_weights(4, 4, seed)).T:
        truth, results = copied(content, list(table.mask_results()), weights)
        (tmp_path / "results.json").write_text(json.dumps(results))
        evaluation = test_segm.by_pycocotools(truth, tmp_path / "results.json")
        once = as_coco(resample_once(found, weights, OF_MASKS.metrics))
        assert [once[f"segm_{name}"] for name in TWELVE] == pytest.approx(evaluation.stats.tolist(), rel=0, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_panoptic_quality_is_resampled_as_hotcoco_on_copied_images(seed: int, tmp_path: Path) -> None:
    """And as the published formula on the sums."""
    truth, maps = test_segments.made(tmp_path, seed)
    metrics = truth.metrics(maps)
    found = truth.by_image(maps, metrics["PQ"])
    once = as_coco(resample_once(found, np.ones(6)))
    assert once == pytest.approx({name: metrics[name] for name in QUALITIES}, rel=0, abs=1e-12)
    for one in maps:
        (tmp_path / f"found{one.image_id}.png").write_bytes(one.png)
    sides = truth.content, truth.annotations(maps)
    named = [{**one, "file_name": f"found{one['image_id']}.png"} for one in sides[1]["annotations"]]
    for weights in [*next(all_weights(6, 4, seed)).T, np.array([0, 0, 0, 0, 0, 6])]:
        a, b = copied(truth.content, named, weights)
        quality = quality_of_files(a, tmp_path, {**a, "annotations": b}, tmp_path)
        expected = quality_metrics(quality, truth.names)
        once = as_coco(resample_once(found, weights))
        assert once == pytest.approx({name: expected[name] for name in QUALITIES}, rel=0, abs=1e-12)
        counts = [(n, c) for n, (_, c) in zip(weights, test_segments.of_images(truth, maps, tmp_path), strict=True)]
        assert once == pytest.approx(by_the_formula(counts), rel=0, abs=1e-12)


def by_the_formula(counts: list[tuple[int, test_segments.Counts]]) -> dict[str, float]:
    """PQ = sum of IoU / (TP + FP / 2 + FN / 2), SQ = sum of IoU / TP, RQ = PQ / SQ; means over the categories."""
    found = {}
    for group, kinds in (("", (0, 1)), ("_things", (1,)), ("_stuff", (0,))):
        rows = []
        for category in test_segments.CATEGORIES:
            iou, tp, fp, fn = (sum(n * one[category["id"]][part] for n, one in counts) for part in range(4))
            if category["isthing"] in kinds and tp + fp + fn:
                whole = tp + fp / 2 + fn / 2
                rows.append((iou / whole, iou / tp if tp else 0.0, tp / whole))
        for name, column in zip(("PQ", "SQ", "RQ"), zip(*rows, strict=True) if rows else [[-1.0]] * 3, strict=True):
            found[f"{name}{group}"] = sum(column) / len(column)
    return found


def test_many_resamples_of_panoptic_quality_are_each_alone(tmp_path: Path) -> None:
    found, metrics = test_segments.segments(tmp_path, 0)
    whole = resample(found, PANOPTIC_METRICS, 20, seed=3)
    for i, weights in enumerate(np.concatenate(list(all_weights(6, 20, 3)), axis=1).T):
        alone = list(resample_once(found, weights).values())
        assert whole["values"][:, i].tolist() == pytest.approx(alone, rel=0, abs=1e-14, nan_ok=True)
        assert np.nanmean(whole["aps"][:, i]) == pytest.approx(alone[0], rel=0, abs=1e-12)
    assert sorted(metrics["PQ_by_category"]) == sorted(found.category_names.tolist())


def test_many_resamples_are_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any number at once, AP of each category too."""
    found, metrics = evaluated("crowds")
    whole = resample(found, COCO_METRICS, 20, seed=3)
    columns = np.concatenate(list(all_weights(len(found.image_ids), 20, 3)), axis=1).T
    for i, weights in enumerate(columns):
        alone = list(resample_once(found, weights).values())
        assert whole["values"][:, i].tolist() == pytest.approx(alone, rel=0, abs=1e-14, nan_ok=True)
        assert np.nanmean(whole["aps"][:, i]) == pytest.approx(alone[0], rel=0, abs=1e-12)
    monkeypatch.setattr(images, "AT_ONCE", 7)
    in_sevens = resample(found, COCO_METRICS, 20, seed=3)
    assert np.allclose(in_sevens["values"], whole["values"], rtol=0, atol=1e-14, equal_nan=True)
    assert list(metrics["AP_by_category"]) == found.category_names.tolist()


def test_weights_are_draws_with_replacement() -> None:
    """Multinomial(N, 1/N): N draws in all, mean 1, variance 1 - 1/N, covariance -1/N."""
    drawn = np.concatenate(list(all_weights(50, 4000, seed=0)), axis=1)
    assert drawn.shape == (50, 4000)
    assert (drawn.sum(0) == 50).all()
    assert drawn.mean(1) == pytest.approx(np.ones(50), abs=0.08)
    covariance = np.cov(drawn)
    assert np.diag(covariance).mean() == pytest.approx(1 - 1 / 50, abs=0.01)
    assert covariance[~np.eye(50, dtype=bool)].mean() == pytest.approx(-1 / 50, abs=0.001)
    assert not np.array_equal(drawn[:, :50], next(all_weights(50, 50, seed=1)))


# ---- run folders -----------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs on the same images, one on others, and one without matches."""
    folders = []
    for name, kind, seed in (("a", "plain", 0), ("b", "ties", 0), ("c", "plain", 1), ("d", "", 0)):
        folder = tmp_path / name
        folder.mkdir()
        folders.append(folder)
        if kind:
            found, metrics = evaluated(kind, seed)
            if name == "b":  # other detections of the same objects
                truth, results = MADE["plain"](0)
                index, table = GroundTruth(truth), table_of(results[::2])
                metrics = coco_metrics(index, table)
                found = matches_of(index, table, metrics["AP"])
            write_matches(RunFolder(folder), found)
            (folder / "result.json").write_text(json.dumps({"last": metrics}))
    return folders


def test_resamples_of_runs_are_paired(runs: list[Path], tmp_path: Path) -> None:
    seen: list[Path] = []
    found = resamples_of(runs, ["AP", "AR_10"], tmp_path / "cache", 10, progress=seen.append)
    assert list(found) == runs[:3]
    assert seen == runs
    a, b, c = found.values()
    assert a.split == b.split != c.split
    weights = np.concatenate(list(all_weights(6, 10, 0)), axis=1).T
    for one, kind in ((a, evaluated("plain")[0]), (c, evaluated("plain", 1)[0])):
        expected = [resample_once(kind, row) for row in weights]
        assert one.values["AP"].tolist() == pytest.approx([e["AP"] for e in expected], abs=1e-12)
        assert one.values["AR_10"].tolist() == pytest.approx([e["AR_10"] for e in expected], abs=1e-12)
        assert list(one.by_category) == ["one", "seventeen", "forty-four", "ninety"]
        assert np.isnan(one.by_category["ninety"]).all()


def test_masks_and_panoptic_segments_of_a_run_are_resampled_with_the_weights_of_boxes(tmp_path: Path) -> None:
    """Boxes, masks and segments of six images each; each has its own cached file, and its own score is checked."""
    content, table = test_segm.made(0, times=3)
    content["images"] += [{"id": 30 + i, "height": 120, "width": 160} for i in range(2)]
    metrics = coco_metrics(GroundTruth(content), table)
    panoptic, quality = test_segments.segments(tmp_path, 0)
    boxes = matches_of(GroundTruth(content), table, metrics["AP"])
    masks = matches_of(GroundTruth(content), table, metrics["segm_AP"], kind="segm")
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.write_result({"last": metrics | quality})
    weights = next(all_weights(6, 10, 0))
    for file, matches in ((OF_BOXES, boxes), (OF_MASKS, masks), (OF_SEGMENTS, panoptic)):
        write_matches(run, matches, file.name())
        for _ in range(2):  # the second time from the cache
            one = resamples_of([run.path], [file.score], tmp_path / "cache", 10, file=file)[run.path]
            expected = [resample_once(matches, row, file.metrics[:1])[file.score] for row in weights.T]
            assert one.values[file.score].tolist() == pytest.approx(expected, abs=1e-12)
        run.write_result({"last": metrics | quality | {file.score: 0.123}})
        with pytest.raises(RunFolderError, match=f"has {file.score} .* of another run"):
            resamples_of([run.path], [file.score], tmp_path / "cache", 10, file=file)
        run.write_result({"last": metrics | quality})
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 3


def test_changed_segments_are_refused(tmp_path: Path) -> None:
    found, metrics = test_segments.segments(tmp_path, 0)
    found.ious[0] += 0.01
    write_matches(RunFolder(tmp_path), found, OF_SEGMENTS.name())
    (tmp_path / "result.json").write_text(json.dumps({"last": metrics}))
    with pytest.raises(RunFolderError, match="damaged: its matches give PQ"):
        resamples_of([tmp_path], ["PQ"], tmp_path / "cache", 10, file=OF_SEGMENTS)


def test_segments_of_another_truth_are_not_paired(tmp_path: Path) -> None:
    """Those of another run on the same truth are."""
    truth, maps = test_segments.made(tmp_path, 0)
    found, fewer = (
        truth.by_image(maps, 0.0),
        truth.by_image([one._replace(**test_segments.empty(one)) for one in maps], 0.0),
    )
    assert images.split_of(found) == images.split_of(fewer)
    assert not np.array_equal(found.fn, fewer.fn)
    (tmp_path / "other").mkdir()
    assert images.split_of(found) != images.split_of(test_segments.segments(tmp_path / "other", 1)[0])


def test_the_second_time_is_read_from_the_cache(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resamples_of(runs, ["AP"], tmp_path / "cache", 10)
    with monkeypatch.context() as patched:
        patched.setattr(images, "resample", lambda *_: pytest.fail("resampled again"))
        second = resamples_of(runs, ["AP"], tmp_path / "cache", 10)
        for run, one in first.items():
            assert one.split == second[run].split
            assert np.array_equal(one.values["AP"], second[run].values["AP"])
            for name, aps in one.by_category.items():
                assert np.array_equal(aps, second[run].by_category[name], equal_nan=True)
    for path in (tmp_path / "cache").glob("*.npz"):
        path.write_bytes(b"damaged")
    assert np.array_equal(
        resamples_of(runs, ["AP"], tmp_path / "cache", 10)[runs[0]].values["AP"], first[runs[0]].values["AP"]
    )
    assert len(resamples_of(runs, ["AP"], tmp_path / "cache", 11)[runs[0]].values["AP"]) == 11
    other_seed = resamples_of(runs, ["AP"], tmp_path / "cache", 10, seed=1)[runs[0]].values["AP"]
    assert not np.array_equal(other_seed, first[runs[0]].values["AP"])


def test_a_changed_result_is_refused_even_with_a_cache(runs: list[Path], tmp_path: Path) -> None:
    resamples_of(runs[:1], ["AP"], tmp_path / "cache", 10)
    (runs[0] / "result.json").write_text(json.dumps({"last": {"AP": 0.123}}))
    with pytest.raises(RunFolderError, match="of another run"):
        resamples_of(runs[:1], ["AP"], tmp_path / "cache", 10)


def test_changed_matches_are_refused(runs: list[Path], tmp_path: Path) -> None:
    """Whose AP is still that of the result."""
    found, _ = evaluated("plain")
    found.matched[0, :5] = 0
    write_matches(RunFolder(runs[0]), found)
    with pytest.raises(RunFolderError, match="damaged: its matches give AP"):
        resamples_of(runs[:1], ["AP"], tmp_path / "cache", 10)


def test_a_study_where_nothing_can_be_written_is_resampled_each_time(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert len(resamples_of(runs[:1], ["AP"], tmp_path / "file" / "cache", 10)) == 1
