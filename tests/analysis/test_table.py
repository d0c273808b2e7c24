"""The table: means and standard deviations, baseline, best, published values, notes, filters, sorting."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.reading.folders import find_runs
from analysis.tables import published
from analysis.tables.cells import Value
from analysis.tables.rows import Row
from analysis.tables.table import Options, Table, make_table
from fovea_detr.errors import UserError
from fovea_detr.runs.folder import METRICS, RunFolder
from fovea_detr.runs.identity import settings_of
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


def test_published_values_stand_beside_the_runs_of_their_recipe_alone(write, tmp_path):
    changed = ("model.heads=4", "kernel=laplace", "fovea.cell_centre=true")
    for overrides in (["dynamic_scale=type3"], *(["dynamic_scale=type3", one] for one in changed), ["model=detr_r50"]):
        write(*overrides)
    write("model=detr_r50", "schedule=500ep")
    table = table_of(tmp_path, metrics=("AP", "AP_large"))
    found = {
        row.runs[0].path.name: (row.cells.get("AP_published"), row.cells.get("AP_large_published"))
        for row in table.rows
    }
    assert found == {
        "dynamic_scale=type3": (Value(0.41), Value(0.591)),
        "dynamic_scale=type3,model.heads=4": (None, None),
        "dynamic_scale=type3,kernel=laplace": (None, None),
        "dynamic_scale=type3,fovea.cell_centre=true": (None, None),
        "model=detr_r50": (Value(0.348), Value(0.544)),
        "model=detr_r50,schedule=500ep": (Value(0.42), Value(0.611)),
    }
    assert "published: DETR model zoo" in table.notes


def test_every_published_key_is_a_leaf_of_the_configuration(write):
    settings = settings_of(write("seed=0").config_text())
    for entry in published.entries():
        assert entry.where.keys() <= settings.keys()
        assert entry.metrics.keys() <= set(METRICS)
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


def test_an_unknown_metric_is_named():
    with pytest.raises(UserError, match="there is no metric ap"):
        Options(metrics=("ap",))
