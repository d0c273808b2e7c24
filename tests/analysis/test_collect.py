"""The table as printed by the command: its columns, and how it fits a terminal."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis import collect, load
from fovea_detr.runs.folder import METRICS, RunFolder
from tests.analysis.conftest import RESULT

pytestmark = pytest.mark.usefixtures("nothing_published")
SCRIPT = Path(collect.__file__)
NUMBERS = ["state", "n", "AP", "AP50", "best AP", "epochs", "total batch", "GPU-hours", "minutes"]
NUMBERS += ["images/s", "ms/image", "peak GiB", "parameters"]
ROW = ["done", "1", "41.0", "62.2", "42.0", "50", "-", "-", "1500.0", "-", "-", "-", "-"]


def header(show: Callable[..., list[list[str]]]) -> list[str]:
    return [name for name in show()[0] if name not in NUMBERS]


# ---- columns -------------------------------------------------------------------------------------


def test_a_grid_over_one_axis_is_one_column_sorted(write, show):
    for name in ("type3", "type1", "type2"):
        write(f"dynamic_scale={name}")
    table = show()
    assert table[0] == ["dynamic_scale", *NUMBERS]
    assert [row[0] for row in table[1:]] == ["type1", "type2", "type3"]
    assert table[1][1:] == ROW


def test_averaged_weights_and_validation_losses_are_columns_on_demand(write, show, refused):
    folder = write("train.ema=0.99", result={**RESULT, "last": {**RESULT["last"], "ema_AP": 0.435, "val_loss": 2.25}})
    folder.write_history([{"epoch": 50, "loss": 2.0, "class_error": 12.5, "steps": 9, "timing": {}}])
    assert "ema_AP" not in show()[0]
    table = show("--columns", "AP,ema_AP,val_loss,class_error")
    assert table == [["AP", "ema_AP", "val_loss", "class_error"], ["41.0", "43.5", "2.250", "12.500"]]
    assert "there is no ema_AR" in refused("--columns", "AP,ema_AR")


@pytest.mark.parametrize("before", [[], [{"epoch": 49, "class_error": 1.0}]])
@pytest.mark.parametrize("categories", [3, 2000])
def test_the_last_line_of_a_history_may_be_of_any_length(write, show, categories, before):
    folder = write()
    last = {"AP_by_category": {f"a category of a long name {i}": 0.5 for i in range(categories)}}
    folder.write_history([*before, {"epoch": 50, "class_error": 12.5, **last}])
    assert show("--columns", "AP,class_error") == [["AP", "class_error"], ["41.0", "12.500"]]


def test_the_same_variants_of_two_studies_are_named_alike(write, tmp_path):
    for study in ("first", "second"):
        for scale in ("type1", "type2"):
            write(f"dynamic_scale={scale}", study=study)
    frame = load(tmp_path).table(baseline="study=first,dynamic_scale=type1", metrics="AP")
    assert frame["AP_verdict"].tolist()[2:] == ["another study: not tested"] * 2
    assert [row.label for row in load(tmp_path).rows] == [f"{s}: type{i}" for s in ("first", "second") for i in (1, 2)]


def test_averaged_weights_without_an_object_are_no_number(write, show, tmp_path):
    """COCO's -1, of `ema_AP_small` as of `AP_small`."""
    for seed, small in enumerate((-1.0, 0.25)):
        last = {"AP": 0.4, "AP_small": small, "ema_AP": 0.4, "ema_AP_small": small}
        folder = write("train.ema=0.99", f"seed={seed}", result={**RESULT, "last": last})
        folder.write_history([{"epoch": 50, "loss": 2.0, **last, "steps": 9, "timing": {}}])
    assert show("--metrics", "AP_small", "--columns", "AP_small,ema_AP_small")[1] == ["25.0", "25.0 (n 1)"]
    epochs = load(tmp_path / "study").epochs
    assert epochs["ema_AP_small"].isna().tolist() == epochs["AP_small"].isna().tolist() == [True, False]


def test_numbers_are_sorted_as_numbers_and_the_seed_comes_last(write, show):
    for smooth in ("16", "4", "8"):
        for seed in ("1", "0"):
            write(f"smooth={smooth}", f"seed={seed}")
    assert [row[:3] for row in show()[:4]] == [["smooth", "state", "n"], *([s, "done", "2"] for s in ("4", "8", "16"))]
    rows = [row[:2] for row in show("--seeds")]
    assert rows[0] == ["smooth", "seed"]
    assert rows[1:] == [["4", "0"], ["4", "1"], ["8", "0"], ["8", "1"], ["16", "0"], ["16", "1"]]


def test_a_group_explains_everything_it_sets(write, show):
    write("model=detr_r50")
    write("model=fovea_r50")
    assert header(show) == ["model"]


def test_a_copy_of_a_groups_leaf_adds_no_column(write, show):
    write("experiment=tiny", "dynamic_scale=type1")
    write("experiment=tiny", "dynamic_scale=type2", "schedule.batch_size=4")
    assert header(show) == ["dynamic_scale", "schedule.batch_size"], "evaluation.batch_size only follows"
    write("dynamic_scale=type2")
    columns = header(show)
    assert set(columns) == {"model", "smooth", "dynamic_scale", "schedule", "data", "schedule.batch_size"}


def test_an_override_is_shown_even_if_the_group_explains_it(write, show):
    write("model=detr_r50", "model.num_queries=50")
    write("model=fovea_r50")
    assert header(show) == ["model", "num_queries"]


def test_a_leaf_outside_the_group_is_shown_even_if_it_varies_with_it(write, show):
    write("dynamic_scale=type1", "fovea.smooth=4")
    write("dynamic_scale=type2", "fovea.smooth=6.5")
    assert show()[1][:2] == ["4", "type1"]
    assert header(show) == ["smooth", "dynamic_scale"]


def test_a_leaf_within_one_group_value_is_shown_by_its_shortest_clear_name(write, show):
    write("model.heads=4", "model.loss_weights.l1=1", "schedule.epochs=60")
    write("model.heads=8", "model.loss_weights.l1=5", "schedule.epochs=50")
    assert header(show) == ["heads", "loss_weights.l1", "schedule.epochs"]


def test_infrastructure_is_never_a_column(write, show):
    write("seed=0", "cluster.gpus=8", "threads=3", "data.workers=2", "runs=elsewhere")
    write("seed=1", "cluster.gpus=4", "data.root=/somewhere", "device=cpu")
    assert header(show) == ["run"]
    assert header(lambda: show("--seeds")) == ["seed"]


def test_an_unknown_axis_is_a_column(tmp_path, show):
    for name, extra in (("red", "{depth: 3}"), ("blue", "{}")):
        folder = RunFolder(tmp_path / "study" / f"colour={name}")
        folder.write_config(f"colour: {{name: {name}, _target_: some.{name}, inner: {extra}}}\nlist: [1, 2]\n")
        folder.write_result(RESULT)
    assert [row[0] for row in show()] == ["colour", "blue", "red"]


def test_a_single_run_is_named_and_studies_are_a_column(write, show):
    write("seed=3")
    assert header(show) == ["run"]
    assert show()[1][0] == "seed=3"
    write("seed=4", study="other")
    assert [row[:2] for row in show("--seeds")] == [["study", "seed"], ["other", "4"], ["study", "3"]]
    assert [row[:2] for row in show()] == [["study", "run"], ["other", "seed=4"], ["study", "seed=3"]]
    assert header(lambda: show("study/")) == ["run"], "a name completed by the shell"


# ---- the terminal --------------------------------------------------------------------------------


def test_the_table_fits_the_terminal_and_cut_texts_are_printed_below(write, tmp_path, capsys, monkeypatch):
    reason = "step 3, rank 0, images 17, 4: the losses are not finite \x1b[31m(classification nan)"
    write("dynamic_scale=type1", result=None).write_state("failed", reason=reason)
    write("dynamic_scale=type2")
    monkeypatch.setenv("COLUMNS", "60")
    collect.main(["--runs", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 60 for line in lines[:3])
    assert "…" in lines[1]
    assert lines[2].split() == ["type2", "done", "1", "41.0", "62.2", "50"]
    assert lines[3].startswith("columns omitted to fit the terminal: best AP, total batch, ")
    assert lines[4].endswith("images 17, 4: the losses are not finite [31m(classification nan)"), "no escape codes"
    monkeypatch.setenv("COLUMNS", "10")
    assert collect.main(["--runs", str(tmp_path)]) == 0
    assert "41.0" in capsys.readouterr().out


def test_watching_ends_when_no_run_is_open(write, tmp_path, capsys, monkeypatch):
    folder, waited = write("seed=0", result=None), []
    folder.write_state("running", epoch=0)
    monkeypatch.setattr(time, "sleep", lambda seconds: waited.append(seconds) or folder.write_state("failed"))
    assert collect.main(["--watch", "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert waited == [collect.WATCH_SECONDS]
    assert out.index("running, epoch 1/50") < out.index("failed: no reason given")


def test_the_script_runs_from_anywhere_and_never_imports_torch(write, tmp_path):
    write("seed=0")
    code = f"""
import runpy, sys
sys.argv = ["collect.py", "--runs", {str(tmp_path)!r}]
try:
    runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
except SystemExit as ended:
    assert ended.code == 0, ended.code
assert "torch" not in sys.modules
"""
    for start in (["-c", code], [str(SCRIPT), "--runs", str(tmp_path)]):
        done = subprocess.run([sys.executable, *start], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "seed=0" in done.stdout


def test_a_narrow_terminal_keeps_the_first_metric(write, capsys, monkeypatch, tmp_path):
    for seed in (0, 1):
        write("smooth=4", f"seed={seed}", result={"last": dict.fromkeys(METRICS, 0.25)})
    for width in (40, 80, 120, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        assert collect.main(["--runs", str(tmp_path), "--metrics", "all"]) == 0
        head, row, omitted = capsys.readouterr().out.splitlines()[:3]
        assert max(len(head), len(row)) <= width
        assert "25.0 ± 0.0" in row
        assert " AP" in head
        assert omitted.startswith("columns omitted to fit the terminal: ")


def test_a_closed_pipe_is_not_an_error(write, tmp_path):
    for number in range(40):
        write(f"fovea.smooth={number + 1}")
    command = f"{sys.executable} {SCRIPT} --runs {tmp_path} --to {tmp_path}/t.csv | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 41
