"""Table, figures, frames, page and exports tell one study in one way: killed, failed, running, copied and eval runs."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from html import unescape
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
import pytest

from analysis import collect, load, plots
from analysis.output.charts import charts
from analysis.tables.cells import Value
from fovea_detr.runs.folder import RunFolder
from tests.analysis.made_up import history, result, write_point, write_state

TOPS = {"type1": (0.38, 0.42), "type2": (0.30, 0.31, 0.29), "type4": (0.27, 0.28)}  # the seeds that finished, by hand


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """type2 has a killed seed at AP 0.02; type4 a copy of a seed and one that failed; type3 is running alone."""
    root = tmp_path_factory.mktemp("runs")
    study, weights = root / "mystudy", root / "detr-r50.pth"
    weights.touch()
    for scale, tops in TOPS.items():
        for seed, top in enumerate(tops):
            finished(study, [f"dynamic_scale={scale}", f"seed={seed}"], top)
    shutil.copytree(study / "dynamic_scale=type4,seed=0", study / "a_copy")
    unfinished(study, ["dynamic_scale=type2", "seed=3"], 2, state="running")
    os.utime(study / "dynamic_scale=type2,seed=3" / "state.json", (1, 1))  # silent since 1970: killed
    unfinished(study, ["dynamic_scale=type4", "seed=2"], 3, state="failed", reason="losses are not finite")
    unfinished(study, ["dynamic_scale=type3", "seed=0"], 12, state="running", epoch=12)
    finished(study, ["model=detr_r50", "mode=eval", f"weights={weights}"], 0.42)
    return root


def finished(study: Path, point: list[str], top: float) -> None:
    lines = [
        {**line, "AP": top * line["epoch"] / 50, "AP_by_category": {"cat": top, "dog": top / 2}}
        for line in history(random.Random(0), 50)
    ]
    path = write_point(study, point, lines)
    (path / "result.json").write_text(json.dumps({**result(lines), "last": lines[-1]}))
    write_state(path, "done")


def unfinished(study: Path, point: list[str], epochs: int, **state: Any) -> None:
    lines = [
        {**line, "AP": 0.02, "AP_by_category": {"cat": 0.02, "dog": 0.02}} for line in history(random.Random(0), epochs)
    ]
    path = write_point(study, point, lines)
    (path / "state.json").write_text(json.dumps({"time": 4e9, "pid": 1, **state}))


def expected() -> dict[str, tuple[float, float, int]]:
    return {scale: (fmean(tops), stdev(tops), len(tops)) for scale, tops in TOPS.items()}


def close(mean: float, std: float, n: float, scale: str) -> None:
    assert (mean, std, n) == pytest.approx(expected()[scale], rel=1e-9)


def test_the_table(root):
    study = load(root)
    for scale in TOPS:
        (row,) = [row for row in study.rows if row.settings.get("dynamic_scale") == scale]
        cell = row.cells["AP"]
        assert isinstance(cell, Value)
        close(cell.mean, cell.std, cell.n, scale)
    (row,) = [row for row in study.rows if row.settings.get("dynamic_scale") == "type2"]
    assert row.state == "3 done, 1 lost"


def test_the_frames_grouped_by_hand(root):
    study = load(root / "mystudy")
    runs = study.runs.query("counts")
    final = study.epochs.query("counts and epoch == 50")
    both = study.categories.query("counts").groupby(["variant", "run"], as_index=False).agg(AP=("AP", "max"))
    for frame in (runs, final, both):
        own: Any
        for variant, own in frame.groupby("variant")["AP"]:
            scale = next((scale for scale in TOPS if scale in str(variant)), None)
            if scale:
                close(own.mean(), own.std(), own.size, scale)
    assert set(study.runs.query("not counts")["run"]) >= {"dynamic_scale=type2,seed=3", "dynamic_scale=type4,seed=2"}
    assert study.runs.loc[study.runs["variant"].str.contains("type4"), "counts"].sum() == 2, "the copy counts once"
    assert not study.runs.loc[study.runs["variant"].str.contains("type3"), "finished"].any()
    assert len(study.runs) == 12


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_the_exports_are_unrounded(root, tmp_path, ending):
    path = tmp_path / f"table.{ending}"
    assert collect.main(["--runs", str(root), "--to", str(path)]) == 0
    if ending == "json":
        frame = pd.DataFrame(json.loads(path.read_text())["rows"])
    else:
        frame = pd.read_csv(path) if ending == "csv" else pd.read_parquet(path)
    for scale in TOPS:
        (own,) = frame.loc[frame["dynamic_scale"] == scale].to_dict("records")
        assert (own["AP"], own["AP_std"], own["n"]) == pytest.approx(expected()[scale], rel=1e-14)
    assert frame["dynamic_scale"].isna().sum() == 1, "plain DETR reads no dynamic scale"


def test_the_figures(root):
    study = load(root)
    written = [text.get_text() for text in plots.final_scores(study.runs).findobj() if hasattr(text, "get_text")]  # pyright: ignore
    assert {f"{100 * mean:.1f} ± {100 * std:.1f}" for mean, std, _ in expected().values()} <= set(written)
    (axes,) = plots.learning_curves(study.epochs).axes
    ends = [float(line.get_ydata()[-1]) for line in axes.lines if line.get_linewidth() > 1]  # pyright: ignore
    for mean, _, _ in expected().values():
        assert any(end == pytest.approx(100 * mean) for end in ends)


def test_the_page(root, tmp_path):
    study = load(root)
    drawn = charts(study.read, study.epochs)[0].curves
    for label, points in drawn.items():
        scale = next((scale for scale in TOPS if scale in label), None)
        if scale:
            x, mean, std = points[-1]
            assert (x, mean / 100, std / 100) == pytest.approx((50, *expected()[scale][:2]))
    assert collect.main(["--runs", str(root), "--to", str(tmp_path / "page.html")]) == 0
    text = unescape((tmp_path / "page.html").read_text())
    for mean, std, _ in expected().values():
        assert re.search(rf">{100 * mean:.1f} ± {100 * std:.1f}<", text)


def test_the_eval_row_has_no_false_data_note(root):
    provenance = RunFolder(next((root / "mystudy").glob("*eval*")))
    facts = provenance.provenance() or {}
    facts["data"] = {"val": facts["data"]["val"]}
    provenance.write_provenance(facts)
    (row,) = [row for row in load(root).rows if row.settings.get("mode") == "eval"]
    assert not [note for note in row.notes if "data" in note]
    assert "schedule" not in row.settings, "an evaluation reads no schedule"


def test_a_copied_run_has_a_row_name_of_its_own(root, capsys):
    assert collect.main(["--runs", str(root), "--seeds", "--baseline", "dynamic_scale=type1,seed=0"]) == 0
    table = load(root).table(by_seed=True)
    assert table["row"].is_unique
    assert "the same configuration and seed in 2 folders, counted once" in capsys.readouterr().out
