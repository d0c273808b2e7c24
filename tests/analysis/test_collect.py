"""The table, of made-up run folders: written as a run writes them, and broken as a crash or a stranger leaves them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from analysis import collect
from analysis.folders import find_runs, read_run
from fovea_detr.config import load_config, point_name
from fovea_detr.record import RunFolder

SCRIPT = Path(collect.__file__)
RESULT = {"last": {"AP": 0.41, "AP50": 0.622}, "best": {"epoch": 45, "AP": 0.42}, "epochs": 50, "minutes": 1500.0}
NUMBERS = ["state", "AP", "AP50", "epochs", "minutes"]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., RunFolder]:
    """Write the folder of a run that is done: its overrides, as on the command line."""

    def write_run(*overrides: str, study: str = "study", result: dict[str, Any] | None = RESULT) -> RunFolder:
        folder = RunFolder(tmp_path / study / point_name(overrides))
        folder.write_config(OmegaConf.to_yaml(OmegaConf.structured(load_config(list(overrides)))))
        folder.write_state("done")
        if result is not None:
            folder.write_result(result)
        return folder

    return write_run


@pytest.fixture
def show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[list[str]]]:
    """Run the command, which must end well -> its lines, split where two spaces or more are."""

    def collected(*arguments: str) -> list[list[str]]:
        assert collect.main([*arguments, "--runs", str(tmp_path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]

    return collected


def header(show: Callable[..., list[list[str]]]) -> list[str]:
    return [name for name in show()[0] if name not in NUMBERS]


# ---- columns -------------------------------------------------------------------------------------


def test_a_grid_over_one_axis_is_one_column_sorted(write, show):
    for name in ("type3", "type1", "type2"):
        write(f"dynamic_scale={name}")
    table = show()
    assert table[0] == ["dynamic_scale", *NUMBERS]
    assert [row[0] for row in table[1:]] == ["type1", "type2", "type3"]
    assert table[1][1:] == ["done", "0.410", "0.622", "50", "1500.0"]


def test_numbers_are_sorted_as_numbers_and_the_seed_comes_last(write, show):
    for smooth in ("16", "4", "8"):
        for seed in ("1", "0"):
            write(f"smooth={smooth}", f"seed={seed}")
    rows = [row[:2] for row in show()]
    assert rows[0] == ["smooth", "seed"]
    assert rows[1:] == [["4", "0"], ["4", "1"], ["8", "0"], ["8", "1"], ["16", "0"], ["16", "1"]]


def test_a_group_stands_for_everything_it_sets(write, show):
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


def test_what_was_set_by_hand_is_shown_though_the_group_would_explain_it(write, show):
    write("model=detr_r50", "model.num_queries=50")
    write("model=fovea_r50")
    assert header(show) == ["model", "num_queries"]


def test_a_leaf_outside_the_group_is_shown_though_it_varies_in_step(write, show):
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
    assert header(show) == ["seed"]


def test_an_axis_nobody_has_heard_of_is_a_column(tmp_path, show):
    for name, extra in (("red", "{depth: 3}"), ("blue", "{}")):
        folder = RunFolder(tmp_path / "study" / f"colour={name}")
        folder.write_config(f"colour: {{name: {name}, _target_: some.{name}, inner: {extra}}}\nlist: [1, 2]\n")
        folder.write_result(RESULT)
    assert [row[0] for row in show()] == ["colour", "blue", "red"]


def test_a_run_alone_goes_by_its_name_and_studies_are_told_apart(write, show):
    write("seed=3")
    assert header(show) == ["run"]
    assert show()[1][0] == "seed=3"
    write("seed=4", study="other")
    assert [row[:2] for row in show()] == [["study", "seed"], ["other", "4"], ["study", "3"]]
    assert header(lambda: show("study/")) == ["run"], "a name completed by the shell"


# ---- states --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "details", "shown"),
    [
        ("queued", {}, "queued"),
        ("running", {}, "running, epoch 3"),
        ("running", {"epoch": 1, "batches_done": 7}, "running, epoch 2"),
        ("preempted", {"reason": "stopped by SIGUSR2"}, "preempted"),
        ("failed", {"reason": "data.root is\n not set"}, "failed: data.root is not set"),
        ("failed", {}, "failed: no reason given"),
        ("done", {}, "broken"),
    ],
)
def test_states(tmp_path, state, details, shown):
    folder = RunFolder(tmp_path)
    folder.write_history([{"epoch": 1}, {"epoch": 2}])
    folder.write_state(state, **details)
    assert read_run(tmp_path).state == shown


def test_a_running_folder_without_a_heartbeat_is_lost(tmp_path, monkeypatch):
    RunFolder(tmp_path).write_state("running", epoch=3)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 590)
    assert read_run(tmp_path).state == "running, epoch 4"
    monkeypatch.setattr(time, "time", lambda: now + 43 * 60)
    assert read_run(tmp_path).state == "lost? running, epoch 4, silent for 43 min"


def test_a_result_means_done(tmp_path):
    RunFolder(tmp_path).write_state("running")
    RunFolder(tmp_path).write_result(RESULT)
    assert read_run(tmp_path).state == "done"


def test_an_unfinished_run_shows_its_last_evaluation(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_state("preempted")
    lines = [{"epoch": 1, "AP": 0.1, "AP50": 0.2}, {"epoch": 2, "timing": {"total_seconds": 90.0}}]
    folder.write_history(lines)
    assert read_run(tmp_path).numbers == {"AP": 0.1, "AP50": 0.2, "epochs": 2, "minutes": 1.5}


def test_nothing_finished_says_so(write, show):
    write("seed=0", result=None).write_state("queued")
    write("seed=1", result=None).write_state("running", epoch=0)
    table = show()
    assert [row[1] for row in table[1:3]] == ["queued", "running, epoch 1"]
    assert table[3] == ["nothing has finished yet (2 runs)"]


# ---- broken and missing --------------------------------------------------------------------------


def test_broken_folders_are_rows_and_the_others_are_unharmed(write, tmp_path, capsys):
    write("dynamic_scale=type1")
    half = write("dynamic_scale=type2").path
    (half / "result.json").write_text('{"last": {"AP": 0.')
    (half / "history.jsonl").write_bytes(b"\xff\xfe\x00")
    third = write("dynamic_scale=type3").path
    for name, text in (("config.yaml", "model: {name: [fov"), ("state.json", "[1]"), ("result.json", '{"last": 3}')):
        (third / name).write_text(text)
    (write("dynamic_scale=type4").path / "state.json").write_text('{"state": "dancing", "time": "noon"}')
    (tmp_path / "study" / "dynamic_scale=type4" / "result.json").unlink()
    (tmp_path / "study" / "empty").mkdir()
    (tmp_path / "study" / "multirun.yaml").write_text("hydra: {}")
    (tmp_path / "study" / ".submitit").mkdir()
    assert collect.main(["--runs", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    rows = {row.split()[0]: row.split()[1:3] for row in text.splitlines()[1:6]}
    assert rows == {
        "type1": ["done", "0.410"],
        "type2": ["broken", "-"],
        "type3": ["done", "-"],
        "type4": ["broken", "-"],
        "-": ["no", "run"],
    }
    notes = [line.removeprefix(f"{tmp_path}/study/") for line in text.splitlines()[6:]]
    starts = [
        "dynamic_scale=type2: history.jsonl: cannot be read: 'utf-8' codec",
        "dynamic_scale=type2: result.json: cannot be read: ",
        "dynamic_scale=type3: config.yaml: cannot be read: ",
        "dynamic_scale=type3: state.json: not what a run writes",
        "dynamic_scale=type3: no config.yaml that can be read",
        "dynamic_scale=type4: state.json: no such state: dancing",
        "empty: no file of a run",
    ]
    assert len(notes) == len(starts)
    assert all(note.startswith(start) for note, start in zip(notes, starts, strict=True)), notes


@pytest.mark.parametrize("file", ["config.yaml", "state.json", "history.jsonl", "result.json"])
def test_no_content_of_a_file_is_fatal(write, show, file):
    write("seed=0")
    path = write("seed=1").path / file
    for content in ("", "null", "7", '"x"', "{", "[[]]", "- a", "a: ${nowhere}", '{"last": []}', "\0"):
        path.write_text(content)
        table = show()
        assert table[0] in (["seed", *NUMBERS], ["run", *NUMBERS]), content
        assert table[1][-5:] == ["done", "0.410", "0.622", "50", "1500.0"], content
        assert table[2][0] in ("1", "seed=1"), content


def test_a_run_that_failed_before_its_config_has_its_columns_from_its_name(write, show, tmp_path):
    write("smooth=8")
    write("smooth=16")
    RunFolder(tmp_path / "study" / "smooth=4").write_state("failed", reason="no data")
    table = show()
    assert [row[:2] for row in table[:4]] == [
        ["smooth", "state"],
        ["4", "failed: no data"],
        ["8", "done"],
        ["16", "done"],
    ]


def test_runs_that_all_failed_before_their_config(show, tmp_path):
    for name in ("dynamic_scale=type1,smooth=4", "dynamic_scale=type2,smooth=4"):
        RunFolder(tmp_path / "study" / name).write_state("failed", reason="no data")
    assert [row[0] for row in show()[:3]] == ["dynamic_scale", "type1", "type2"]


@pytest.mark.parametrize("runs", ["nowhere", ".", "study", "study/base"])
def test_no_runs_or_a_wrong_folder_is_one_line_and_exit_code_1(write, tmp_path, capsys, runs):
    (tmp_path / "pictures" / "cats").mkdir(parents=True)
    if runs != ".":
        write()
    assert collect.main(["--runs", str(tmp_path / runs)]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert "--runs" in error


def test_an_unknown_study_names_those_there_are(write, tmp_path, capsys):
    write(study="smooth")
    (tmp_path / "idle").mkdir()
    assert collect.main(["smoth", "--runs", str(tmp_path)]) == 1
    assert "no study smoth" in (error := capsys.readouterr().err)
    assert "smooth" in error
    assert collect.main(["idle", "--runs", str(tmp_path)]) == 1
    assert "no runs in" in capsys.readouterr().err


# ---- the terminal --------------------------------------------------------------------------------


def test_the_table_fits_the_terminal_and_what_is_cut_stands_below(write, tmp_path, capsys, monkeypatch):
    reason = "step 3, rank 0, images 17, 4: the losses are not finite \x1b[31m(classification nan)"
    write("dynamic_scale=type1", result=None).write_state("failed", reason=reason)
    write("dynamic_scale=type2")
    monkeypatch.setenv("COLUMNS", "60")
    collect.main(["--runs", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 60 for line in lines[:3])
    assert "…" in lines[1]
    assert lines[2].split() == ["type2", "done", "0.410", "0.622", "50", "1500.0"]
    assert lines[3].endswith("images 17, 4: the losses are not finite [31m(classification nan)"), "no escape codes"
    monkeypatch.setenv("COLUMNS", "10")
    assert collect.main(["--runs", str(tmp_path)]) == 0
    assert "1500.0" in capsys.readouterr().out


def test_the_frame_holds_numbers(write, tmp_path):
    write("seed=0")
    write("seed=1")
    table = collect.make_table(find_runs(tmp_path))
    assert table["AP"].mean() == pytest.approx(0.41)


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
