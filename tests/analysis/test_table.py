"""The table: means and standard deviations, baseline, best, published values, notes, filters, sorting."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import collect, load
from analysis.reading.folders import find_runs
from analysis.statistics import power
from analysis.statistics.seeds import fit_the_pool
from analysis.tables import published
from analysis.tables.cells import Value
from analysis.tables.rows import Row
from analysis.tables.table import Options, Table, make_table
from fovea_detr.errors import UserError
from fovea_detr.runs.folder import ALL_METRICS, METRICS, RunFolder
from fovea_detr.runs.stored import settings_of
from tests.analysis.made_up import provenance, write_every_kind

BASE = "fovea_r50, type2, none, gaussian, 50ep, coco"  # of a single row


@pytest.fixture(scope="module")
def runs_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_every_kind(root / "dynamic_scale")
    return root


def table_of(root: Path, **options: object) -> Table:
    return make_table(find_runs(root), Options(**options))  # pyright: ignore[reportArgumentType]


def row_of(table: Table, **settings: str) -> Row:
    found = [row for row in table.rows if settings.items() <= row.settings.items()]
    assert len(found) == 1
    return found[0]


def value(row: Row, name: str) -> Value:
    cell = row.cells[name]
    assert isinstance(cell, Value)
    return cell


def by_hand(root: Path) -> pd.DataFrame:
    """Every finished run's metrics, read from the files."""
    folders = [RunFolder(path.parent) for path in sorted(root.glob("*/*/result.json"))]
    lines = [{"point": f.path.name, **((f.result() or {})["last"])} for f in folders]
    frame = pd.DataFrame(lines)
    frame["scale"] = frame["point"].str.extract(r"dynamic_scale=(\w+)")
    return frame


def not_resolved(frame: pd.DataFrame, name: str) -> set[str]:
    """The best scale and those whose simultaneous interval by Dunnett against it holds 0, from scipy."""
    values = {str(scale): own.to_numpy() for scale, own in frame.groupby("scale")[name]}
    best = max(values, key=lambda scale: values[scale].mean())
    others = [scale for scale in values if scale != best]
    found = stats.dunnett(*(values[scale] for scale in others), control=values[best], rng=np.random.default_rng(0))
    interval = found.confidence_interval(0.95)
    held = [low <= 0 <= high for low, high in zip(interval.low, interval.high, strict=True)]
    return {best, *(scale for scale, holds in zip(others, held, strict=True) if holds)}


def test_mean_sample_deviation_n_difference_and_best_are_those_of_pandas(runs_root):
    table = table_of(runs_root, metrics=tuple(METRICS), baseline="dynamic_scale=type1")
    grouped: Any = by_hand(runs_root).groupby("scale")[list(METRICS)]
    mean, std, count = (frame.to_dict() for frame in (grouped.mean(), grouped.std(ddof=1), grouped.count()))
    for scale in ("type1", "type2", "type3"):
        row = row_of(table, dynamic_scale=scale, mixture="none")
        assert row.cells["n"] == Value(3)
        for name in METRICS:
            cell = value(row, name)
            assert cell.mean == pytest.approx(mean[name][scale], rel=1e-12)
            assert cell.std == pytest.approx(std[name][scale], rel=1e-9)
            assert cell.n == count[name][scale]
            difference = mean[name][scale] - mean[name]["type1"]
            if scale != "type1":
                assert value(row, f"{name}_difference").mean == pytest.approx(difference, abs=1e-12)
            fitting = fit_the_pool([own.tolist() for _, own in by_hand(runs_root).groupby("scale")[name]])
            if all(fitting):  # else by Welch: tests/analysis/statistics/
                assert (name in row.best) == (scale in not_resolved(by_hand(runs_root), name))


def test_an_unfinished_row_shows_its_last_score_but_neither_difference_nor_best(runs_root):
    row = row_of(table_of(runs_root, baseline="dynamic_scale=type1"), dynamic_scale="type4")
    assert row.cells["state"] == "1 running, 1 queued, 1 preempted"
    assert value(row, "epochs").mean == 12
    assert math.isnan(value(row, "AP").std), "the furthest alone: seed 1 stands at another epoch"
    assert row.cells["AP_difference"] is None
    assert not row.best
    assert row.notes == ["epoch 12 of 50, before the learning-rate drop after 40: not comparable"]


def test_a_row_after_its_drop_is_still_unfinished(write, tmp_path):
    folder = write("seed=0", result=None)
    folder.write_history([{"epoch": epoch, "AP": 0.4} for epoch in range(1, 46)])
    folder.write_state("preempted")
    assert table_of(tmp_path).rows[0].notes == ["epoch 45 of 50, not finished: not comparable"]


def test_rows_made_differently_are_noted(runs_root):
    table = table_of(runs_root)
    notes = {row.cells["dynamic_scale"]: row.notes for row in table.rows if row.cells["mixture"] == "none"}
    assert "total batch differs between seeds: 16 / 32" in notes["type1"]
    assert notes["type2"] == ["code fedcba9 + changes 77, other rows 0123456"]
    assert notes["type3"] == ["published: SMCA README"]


def test_precision_and_data_are_noted_and_compared_with_the_baseline(write, tmp_path):
    for number, data in ((1, "b" * 16), (2, "b" * 16), (3, "c" * 16)):
        folder = write(f"dynamic_scale=type{number}", *["precision=bf16"] * (number == 2))
        folder.write_provenance(provenance(data={"train": "a" * 16, "val": data}))
    notes = [row.notes for row in table_of(tmp_path, baseline="dynamic_scale=type3").rows]
    assert "val data bbbbbbbb, other rows cccccccc" in notes[0]
    assert "precision bf16, other rows fp32" in notes[1]
    assert not any("data" in note or "precision" in note for note in notes[2])
    other = tmp_path / "other"
    (tmp_path / "study").rename(other)
    write("dynamic_scale=type3").write_provenance(provenance())
    lines = [note for row in table_of(tmp_path).rows if row.study == "study" for note in row.notes]
    assert lines == ["published: SMCA README"], "runs of different studies are not compared"


def test_equal_configurations_in_two_folders_are_reported_and_counted_once(write, tmp_path):
    write("dynamic_scale=type2", "seed=0")
    write("seed=1")
    write("seed=0", "smooth=8")
    table = table_of(tmp_path)
    assert len(table.rows) == 1
    assert value(table.rows[0], "AP").n == 2
    folders = f"{tmp_path}/study/dynamic_scale=type2,seed=0, {tmp_path}/study/seed=0,smooth=8"
    assert table.warnings == [f"the same configuration and seed in 2 folders, counted once: {folders}"]


PUBLISHED = {
    ("dynamic_scale=type3",): 0.41,
    ("dynamic_scale=type1",): 0.385,
    ("dynamic_scale=type3", "schedule.batch_size=8"): 0.41,  # of fewer GPUs
    ("dynamic_scale=type3", "evaluation.batch_size=1"): 0.41,
    ("model=detr_r50",): 0.348,
    ("model=detr_r50", "dynamic_scale=type4"): 0.348,  # plain DETR reads no scale
    ("model=detr_r50", "schedule=500ep"): 0.42,
    ("model=detr_r101_dc5", "schedule=500ep"): 0.449,
    ("model=fovea_r101", "model.backbone=resnet50", "dynamic_scale=type3"): 0.41,
}
NOT_PUBLISHED = [f"dynamic_scale=type3,{one}" for one in ("model.heads=4", "kernel=laplace", "fovea.cell_centre=true")]
NOT_PUBLISHED += [
    f"dynamic_scale=type3,{one}" for one in ("model.backbone=resnet18", "model.dropout=0", "model.dc5=true")
]
NOT_PUBLISHED += [
    "dynamic_scale=type3,schedule.weight_decay=0",
    "dynamic_scale=type3,precision=bf16",
    "dynamic_scale=type2",
]
NOT_PUBLISHED += [
    "model=detr_r50,model.dropout=0",
    "dynamic_scale=type3,data=shapes",
    "dynamic_scale=type3,schedule.clip=0",
]
NOT_PUBLISHED += ["dynamic_scale=type3,data.num_classes=4", "dynamic_scale=type3,model.position=learned"]


@pytest.mark.parametrize("point", [*PUBLISHED, *(tuple(one.split(",")) for one in NOT_PUBLISHED)])
def test_published_values_stand_beside_the_published_configuration_alone(write, tmp_path, point):
    write(*point)
    (row,) = table_of(tmp_path).rows
    assert row.cells.get("AP_published") == (Value(PUBLISHED[point]) if point in PUBLISHED else None)


@pytest.mark.parametrize(("total", "is_published"), [(16, True), (32, True), (64, False), (4, False)])
def test_published_values_need_the_published_total_batch(write, tmp_path, total, is_published):
    write("dynamic_scale=type3", result={"last": {"AP": 0.4}, "total_batch_size": total})
    assert ("AP_published" in table_of(tmp_path).rows[0].cells) == is_published


@pytest.mark.parametrize(
    ("name", "sha", "published"),
    [
        ("detr-r50.pth", "e632da11" + "0" * 8, Value(0.42)),
        ("detr-r50-e632da11.pth", None, Value(0.42)),
        ("detr-r50-e632da11.pth", "f" * 16, None),  # another file of that name
        ("my_own.pth", None, None),
    ],
)
def test_published_values_stand_beside_an_evaluation_of_the_published_checkpoint(write, tmp_path, name, sha, published):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / name).touch()
    folder = write("model=detr_r50", "mode=eval", f"weights={tmp_path / 'weights' / name}")
    folder.write_provenance(provenance(data={"val": "b" * 16}, **({"weights_sha256": sha} if sha else {})))
    (row,) = make_table(find_runs(tmp_path, ["study"])).rows
    assert row.cells.get("AP_published") == published


@pytest.mark.parametrize(("mode", "published"), [("train", None), ("eval", Value(0.434))])
def test_masks_trained_all_at_once_are_not_the_published_second_stage(write, tmp_path, mode, published):
    """Which trains 25 epochs on a trained detector; so its values stand beside its checkpoint alone."""
    weights = tmp_path / "detr-r50-panoptic-00ce5173.pth"
    weights.touch()
    panoptic = ["data=coco_panoptic", "data.num_classes=250", "evaluation.batch_size=1"]
    point = ["model=detr_r50", "model.masks=true", "schedule=masks", *panoptic]
    write(*point, *([f"mode={mode}", f"weights={weights}"] if mode == "eval" else []))
    (row,) = make_table(find_runs(tmp_path, ["study"]), Options(("AP", "PQ"))).rows
    assert row.cells.get("PQ_published") == published


def test_what_a_model_does_not_read_is_blank_and_matches_no_condition(write, tmp_path):
    for point in (["model=detr_focal_r50"], ["dynamic_scale=type2"], ["dynamic_scale=type3"]):
        write("experiment=tiny", *point)
    write("model=detr_focal_r50", "dynamic_scale=type3", "seed=1", "experiment=tiny")
    table = table_of(tmp_path)
    assert [row.cells["dynamic_scale"] for row in table.rows] == [None, "type2", "type3"]
    assert value(table.rows[0], "AP").n == 2, "plain DETR is one row, whatever scale was named"
    assert {row.settings["model"] for row in table_of(tmp_path, where=("dynamic_scale=type2",)).rows} == {"fovea_tiny"}
    assert table_of(tmp_path, baseline="dynamic_scale=type2").baseline is not None


def test_settings_of_masks_are_blank_where_there_is_no_mask_head_or_no_prior(write, tmp_path):
    masks = "experiment=tiny_masks"
    for point in ([masks], [masks, "model.mask_prior=none"], [masks, "model=detr_focal_tiny"], ["experiment=tiny"]):
        write(*point)
    boxes = [masks, "data=shapes", "model.mask_prior=none", "panoptic.threshold=0.5"]
    write(*boxes)
    found = {
        (row.settings["model"], row.settings["model.masks"], row.settings["data"]): [
            row.settings.get(key) for key in ("model.mask_prior", "panoptic.threshold", "model.loss_weights.dice")
        ]
        for row in table_of(tmp_path, where=("mask_prior!=last",)).rows
    }
    assert found == {
        ("fovea_tiny_masks", "true", "shapes_panoptic"): ["none", "0.35", "20"],
        ("detr_focal_tiny", "true", "shapes_panoptic"): [None, "0.35", "20"],
        ("fovea_tiny", "false", "shapes"): [None, None, None],
        ("fovea_tiny_masks", "true", "shapes"): ["none", None, "20"],
    }
    assert len(table_of(tmp_path, where=("mask_prior=none",)).rows) == 2


def test_a_resume_under_changed_code_or_packages_is_noted(write, tmp_path):
    folder = write("seed=0")
    later = [provenance(), provenance(code={"sha": "f" * 16, "uncommitted": ""}, packages={"torch": "2.7.0"})]
    later.insert(1, provenance(code={}))  # a start that did not know its code
    folder.write_provenance(provenance(later_starts=later))
    write("seed=1").write_provenance(provenance(later_starts=later[:1]))
    notes = table_of(tmp_path).rows[0].notes
    assert notes[:2] == [
        "resumed with another code 0123456 -> fffffff (1 of 2 runs)",
        "resumed with another torch 2.6.0 -> 2.7.0 (1 of 2 runs)",
    ]


def test_cost_has_a_spread_and_unlike_devices_are_noted(write, tmp_path):
    for seed, device, minutes in ((0, "NVIDIA V100", 60.0), (1, "NVIDIA A100", 30.0)):
        result = {"last": {"AP": 0.4}, "minutes": minutes, "gpu_hours": minutes / 15, "total_batch_size": 16 << seed}
        write(f"seed={seed}", result=result).write_provenance(provenance(device=device))
    (row,) = table_of(tmp_path).rows
    assert (value(row, "gpu_hours").mean, value(row, "minutes").std) == pytest.approx((3, 30 / math.sqrt(2)))
    assert row.cells["total_batch"] == "16 / 32", "never a mean"
    note = "device differs between seeds: 4 x NVIDIA A100 / 4 x NVIDIA V100: cost is not comparable"
    assert note in row.notes


def test_a_number_that_is_none_has_its_reason_and_its_own_n(write, show):
    for seed, small in ((0, 0.2), (1, -1.0), (2, math.nan)):
        write("smooth=4", f"seed={seed}", result={"last": {"AP": 0.4, "AP_small": small}, "peak_memory_bytes": 3 << 30})
    lines = show("--metrics", "AP,AP_small", "--columns", "n,AP,AP_small,peak GiB")
    assert lines[:2] == [["n", "AP", "AP_small", "peak GiB"], ["3", "40.0 ± 0.0", "20.0 (n 1)", "3.0 ± 0.0"]]
    assert ["2: AP_small left out in 1 of 3 runs (nan)"] in lines
    assert ["1: AP_small left out in 1 of 3 runs (-1: the validation set has no such object)"] in lines


def test_every_published_key_is_a_leaf_of_the_configuration(write):
    settings = settings_of(write("seed=0").config_text())
    for entry in published.entries():
        assert entry.where.keys() <= settings.keys()
        assert entry.metrics.keys() <= set(ALL_METRICS)
        assert all(0.1 < metric < 0.7 for metric in entry.metrics.values())


@pytest.mark.parametrize(
    ("where", "points"),
    [
        (["smooth=4"], {"smooth=4"}),
        (["smooth>4"], {"smooth=8", "smooth=16"}),
        (["fovea.smooth>=8,smooth<16"], {BASE}),
        (["smooth=4,16"], {"smooth=4", "smooth=16"}),
        (["smooth!=8", "smooth!=16"], {"smooth=4"}),
        (["schedule=50ep"], {"smooth=8", "smooth=4", "smooth=16"}),
        (["state=queued"], {"smooth=16"}),
        (["AP>0.4"], {BASE}),
        (["AP<=0.4"], {"smooth=4"}),
        (["AP>40%"], {BASE}),
        (["n=1", "epochs = 50"], {"smooth=8", "smooth=4"}),
        (["study==study"], {"smooth=8", "smooth=4", "smooth=16"}),
    ],
)
def test_where(write, tmp_path, where, points):
    write()
    write("smooth=4", result={"last": {"AP": 0.3}, "epochs": 50})
    write("smooth=16", result=None).write_state("queued")
    table = make_table(find_runs(tmp_path), Options(where=tuple(where)))
    assert {row.label for row in table.rows} == points


@pytest.mark.parametrize(
    ("where", "points"),
    [
        ("dc5=True", {"model.dc5=true"}),
        ("dc5!=True", {"train.ema=0.9", "weights"}),
        ("ema=None", {"model.dc5=true", "weights"}),
        ("ema!=None", {"train.ema=0.9"}),
        ("mixture!=None", set()),
        ("weights={weights}", {"weights"}),
        ("weights!={weights}", {"model.dc5=true", "train.ema=0.9"}),
    ],
)
def test_values_as_python_spells_them_and_a_path_with_a_comma(write, tmp_path, where, points):
    weights = tmp_path / "r50,best.pth"
    weights.touch()
    for point in ("model.dc5=true", "train.ema=0.9"):
        write(point)
    write(f"weights='{weights}'").path.rename(tmp_path / "study" / "weights")
    asked = Options(where=(where.format(weights=weights),))
    if not points:
        with pytest.raises(UserError, match="none of 3 runs matches"):
            make_table(find_runs(tmp_path), asked)
        return
    assert {row.runs[0].path.name for row in make_table(find_runs(tmp_path), asked).rows} == points


def test_where_may_choose_seeds(write, tmp_path):
    for seed in range(3):
        write(f"seed={seed}")
    assert value(table_of(tmp_path, where=("seed<2",)).rows[0], "AP").n == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "AP,mAP"], "there is no metric mAP; choose from AP, AP50, AP75"),
        (["--where", "smoth=4"], "there is no smoth; choose from fovea.smooth"),
        (
            ["--where", "batch_size=4"],
            "batch_size is ambiguous: schedule.batch_size, evaluation.batch_size; give the full name",
        ),
        (["--where", "smooth"], "'smooth' is not a condition"),
        (["--where", "smooth>wide"], "> compares numbers"),
        (["--where", "smooth=5"], "none of 2 runs matches smooth=5"),
        (["--baseline", "smooth=5"], "--baseline smooth=5 matches none of the 2 rows"),
        (["--baseline", "dynamic_scale=type2"], "matches 2 rows (smooth=4; smooth=16)"),
        (["--where", "AP>40"], "AP is a fraction in conditions: write AP>0.4 or AP>40%"),
        (
            ["--baseline", "type2"],
            "--baseline type2: there is no such row; name it KEY=VALUE, or as in smooth=4; smooth=16",
        ),
        (["--columns", "AP,beauty"], "there is no beauty; choose from"),
        (["--why"], "add --baseline KEY=VALUE"),
        (["--plan", "-1"], "--plan -1: a difference in AP"),
        (["--since", "yesterday"], "--since is for the page: add --to FILE.html"),
        (["--siunitx"], "--siunitx is for LaTeX: add --to FILE.tex"),
        (["--reverse"], "--reverse turns an order round: add --sort COLUMN"),
        (["--baseline", "dynamic_scale=type1,seed=0"], "a row is all its seeds: leave seed out"),
        (["--since", "yesterday", "--to", "page.html"], "--since yesterday: write a date as 2026-11-20"),
        (["--sort", "beauty"], "there is no beauty; choose from"),
        (["--to", "results.docx"], "the file name must end in one of .csv, .md, .tex, .json, .parquet, .html"),
        (["--to", "."], "the file name must end in one of"),
    ],
)
def test_invalid_arguments_are_one_clear_line(write, refused, arguments, message):
    write("smooth=4")
    write("smooth=16")
    if message.startswith("matches 2 rows"):
        assert message.split("(")[0] in refused(*arguments)
    else:
        assert message in refused(*arguments)


def test_sorting_is_descending_for_metrics_ascending_otherwise_and_empty_last(write, tmp_path):
    for smooth, score in ((4, 0.3), (8, 0.5), (16, 0.4)):
        write(f"fovea.smooth={smooth}", result={"last": {"AP": score}})
    write("fovea.smooth=2", result=None)
    order = lambda **options: [row.settings["fovea.smooth"] for row in table_of(tmp_path, **options).rows]  # noqa: E731
    assert order() == ["2", "4", "8", "16"]
    assert order(sort="AP") == ["8", "16", "4", "2"]
    assert order(sort="AP", reverse=True) == ["4", "16", "8", "2"]
    assert order(sort="smooth", reverse=True) == ["16", "8", "4", "2"]
    assert order(sort="state,AP") == ["2", "8", "16", "4"]


def test_a_single_seed_shows_no_spread_and_a_row_may_be_a_seed(write, show):
    for seed, score in ((0, 0.4), (1, 0.42)):
        write("smooth=4", f"seed={seed}", result={"last": {"AP": score}})
    write("smooth=8", result={"last": {"AP": 0.5}})
    lines = show("--metrics", "AP")
    assert lines.pop() == ["study: rows with one seed are never marked as best: their spread over seeds is unknown"]
    assert [row[:4] for row in lines[1:]] == [
        ["4", "done", "2", "41.0 ± 1.4"],
        ["8", "done", "1", "50.0"],
    ]
    assert [row[:5] for row in show("--metrics", "AP", "--seeds")[1:]] == [
        ["4", "0", "done", "1", "40.0"],
        ["4", "1", "done", "1", "42.0"],
        ["8", "0", "done", "1", "50.0"],
    ]


def test_all_metrics_are_shown_on_demand(write, show):
    write("seed=0", result={"last": dict.fromkeys(METRICS, 0.25)})
    table = show("--metrics", "all")
    assert [name for name in table[0] if name in METRICS] == list(METRICS)
    assert table[1].count("25.0") == len(METRICS)


def test_a_metric_that_older_folders_lack_is_blank(write, show):
    write("smooth=4", result={"last": {"AP": 0.4}})
    write("smooth=8", result={"last": {"AP": 0.5, METRICS[-1]: 0.25}})
    assert [row[3:5] for row in show("--metrics", f"AP,{METRICS[-1]}")[1:]] == [["40.0", "-"], ["50.0", "25.0"]]


def test_per_cent_or_fractions_and_a_difference_has_a_digit_of_its_own(write, show):
    for scale, score in (("type1", 0.4004), ("type2", 0.4016)):
        write(f"dynamic_scale={scale}", result={"last": {"AP": score}})
    options = ["--metrics", "AP", "--baseline", "type1", "--columns", "dynamic_scale,AP,AP_difference"]
    assert show(*options)[:3] == [
        ["dynamic_scale", "AP", "ΔAP"],
        ["type1", "40.0", "-"],
        ["type2", "40.2", "+0.12"],
    ]
    assert show(*options, "--no-percent")[2] == ["type2", "0.402", "+0.0012"]


def test_a_difference_is_told_as_scipy_finds_it(runs_root, capsys):
    every = ["--runs", str(runs_root), "--metrics", "AP", "--baseline", "dynamic_scale=type1", "--why", "--plan", "0.3"]
    assert collect.main(every) == 0
    out = capsys.readouterr().out
    values = {str(scale): own.to_numpy() for scale, own in by_hand(runs_root).groupby("scale")["AP"]}
    told = stats.dunnett(values["type2"], values["type3"], control=values["type1"], rng=np.random.default_rng(0))
    interval = told.confidence_interval(0.95)
    for i, scale in enumerate(("type2", "type3")):
        found = re.search(rf"AP of {scale}, mixture=none: (\S+); seeds \[(\S+), (\S+)\]; Dunnett", out)
        assert found
        delta = values[scale].mean() - values["type1"].mean()
        wanted = (100 * delta, 100 * interval.low[i], 100 * interval.high[i])
        assert [float(text) for text in found.groups()] == pytest.approx(wanted, abs=0.02)
        assert (interval.low[i] > 0) == ("better on these images" in out)
    pooled = math.sqrt(np.mean([own.var(ddof=1) for own in values.values()]))
    assert f"seeds' standard deviation {100 * pooled:.2f} AP (6 degrees of freedom)" in out
    number = int(re.findall(r"(\d+) seeds a row", out)[0])
    t = stats.t.ppf([0.975, 0.8], 2 * (number - 1)).sum()
    assert t * pooled * math.sqrt(2 / number) <= 0.003 < t * pooled * math.sqrt(2 / (number - 1)) * 1.01


def test_a_plan_is_of_one_study_and_of_rows_that_have_learned(write, show):
    """A row at the floor hardly varies, and another study varies otherwise."""
    for study, scores in (
        ("coco", {"type1": (0.40, 0.41), "type2": (0.42, 0.43), "type3": (0.001, 0.0011)}),
        ("tiny", {"type1": (0.1, 0.3), "type2": (0.40, 0.4001)}),
        ("floor", {"type1": (0.001, 0.002)}),
    ):
        for scale, values in scores.items():
            for seed, top in enumerate(values):
                write(f"dynamic_scale={scale}", f"seed={seed}", study=study, result={"last": {"AP": top}})
    (coco,), (floor,), (tiny,) = (line for line in show("--plan", "0.5") if line[0].startswith("plan"))
    assert coco.startswith("plan of coco: 0.5 AP at 80 % power: ")
    assert coco.endswith(
        "(seeds' standard deviation 0.71 AP (2 degrees of freedom), without rows below AP 1: 1, images not counted: "
        "no run has matches)"
    )
    number = int(re.findall(r"(\d+) seeds a row", coco)[0])
    assert number == power.plan(0.005, math.sqrt(0.00005))
    assert floor.startswith("plan of floor: 0.5 AP: no row that has learned has two finished seeds")
    assert "of rows whose spreads differ, 0.01 to 14.14" in tiny


def test_an_interval_wider_than_100_ap_is_not_printed_but_kept_in_files(write, tmp_path, show):
    """Two seeds a row, and spreads that are not alike: Welch with one degree of freedom, corrected by Holm."""
    tops = {"type1": (0.380, 0.385), "type2": (0.35, 0.47), "type3": (0.400, 0.4001)}
    for scale, scores in tops.items():
        for seed, top in enumerate(scores):
            write(f"dynamic_scale={scale}", f"seed={seed}", result={"last": {"AP": top}})
    file = tmp_path / "table.csv"
    options = ["--metrics", "AP", "--baseline", "type1", "--columns", "AP_difference,AP_verdict", "--why"]
    lines = show(*options, "--to", str(file))
    (row,) = [line for line in lines if line[0] == "+2.75"]
    assert re.fullmatch(r"not resolved: about \d+ seeds", row[1]), "and no interval beside it"
    assert any("AP of type2: +2.75; seeds [wider than 100 AP]; Welch, Holm;" in str(line) for line in lines)
    kept = pd.read_csv(file).set_index("dynamic_scale").loc["type2"]
    welch = stats.ttest_ind(tops["type2"], tops["type1"], equal_var=False).confidence_interval(1 - 0.05 / 2)
    assert welch.high - welch.low > 1
    assert [kept["AP_difference_low"], kept["AP_difference_high"]] == pytest.approx([welch.low, welch.high])
    assert ["study: AP: no row is resolved from the best; --plan tells how many seeds it takes"] in lines


def test_a_study_of_single_seeds_says_so(write, show):
    write("dynamic_scale=type1")
    write("dynamic_scale=type2", result={"last": {"AP": 0.9}})
    lines = show("--metrics", "AP", "--baseline", "type1", "--columns", "AP,AP_difference,AP_verdict")
    assert lines[:3] == [
        ["AP", "ΔAP", "AP is"],
        ["41.0", "-", "baseline"],
        ["90.0", "+49.00", "one seed: spread of training unknown"],
    ]


def test_one_seed_never_gets_a_verdict_or_a_mark(write, show):
    write("dynamic_scale=type1")
    for seed in (0, 1):
        write("dynamic_scale=type2", f"seed={seed}", result={"last": {"AP": 0.2 + seed / 100}})
    text = str(show("--metrics", "AP", "--baseline", "dynamic_scale=type2"))
    assert "one seed: spread of training unknown" in text
    assert "*" not in text
    assert not {"better", "worse"} & set(re.findall(r"\w+", text))


def test_an_unknown_metric_is_named():
    for metrics in (("ap",), "ap"):
        with pytest.raises(UserError, match="there is no metric ap"):
            Options(metrics=metrics)
    assert Options("AP50,AP,AP50").metrics == ("AP50", "AP")


def test_parts_of_a_rows_name_that_no_other_row_has_name_it(write, tmp_path):
    for point in (["dynamic_scale=type1"], ["dynamic_scale=type2"], ["dynamic_scale=type2", "smooth=4"]):
        write(*point)
    study = load(tmp_path)
    assert [row.label for row in study.rows] == ["smooth=4, type2", "smooth=8, type1", "smooth=8, type2"]
    assert study.compare("type1", "smooth=4, type2", "AP").loc["AP", "difference"] == 0
    with pytest.raises(UserError, match="type2 matches 2 rows"):
        study.compare("type1", "type2")
    with pytest.raises(UserError, match="there is no metric nope"):
        study.compare("type1", "smooth=4, type2", ["nope"])


def test_metrics_of_masks_and_panoptic_quality_are_columns_that_can_be_asked_for(write, show, tmp_path):
    masks = {"AP": 0.41, "segm_AP": 0.275, "segm_AP_large": -1.0, "PQ": 0.34}
    write("dynamic_scale=type1", result={"last": masks})
    write("dynamic_scale=type2", result={"last": {"AP": 0.3}})
    head, line, *_ = show("--metrics", "AP,segm_AP,segm_AP_large,PQ", "--sort", "PQ")
    cells = dict(zip(head, line, strict=True))
    assert [cells[name] for name in ("AP", "segm_AP", "segm_AP_large", "PQ")] == ["41.0", "27.5", "-", "34.0"]
    study = load(tmp_path / "study")
    assert study.runs["segm_AP"].tolist()[0] == 0.275
    assert study.table(metrics="AP,PQ")["PQ"].isna().tolist() == [False, True]
