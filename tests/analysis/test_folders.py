"""Run folders in every state: complete, unfinished, damaged, or not run folders at all."""

from __future__ import annotations

import time

import pytest
from omegaconf import OmegaConf

from analysis import collect
from analysis.reading.runs import read_run
from fovea_detr.compose import load_config
from fovea_detr.runs.folder import RunFolder
from fovea_detr.study.manifest import Submission
from tests.analysis.conftest import RESULT

pytestmark = pytest.mark.usefixtures("nothing_published")
NUMBERS = ["state", "n", "AP", "AP50", "best AP", "epochs", "total batch", "GPU-hours", "minutes"]
NUMBERS += ["images/s", "ms/image", "peak GiB", "parameters"]
ROW = ["done", "1", "41.0", "62.2", "42.0", "50", "-", "-", "1500.0", "-", "-", "-", "-"]


# ---- states --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "details", "shown"),
    [
        ("queued", {}, "queued"),
        ("running", {}, "running, epoch 3"),
        ("running", {"epoch": 1, "batches_done": 7}, "running, epoch 2"),
        ("preempted", {"reason": "stopped by SIGUSR2"}, "preempted in epoch 3"),
        ("preempted", {"start": {"job": "7_1", "restarts": 2}}, "preempted in epoch 3, 2 restarts"),
        ("queued", {"start": {"job": "7_1", "restarts": 1}}, "queued, job 7_1, 1 restart"),
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
    lines[1]["timing"] |= {"images_per_second": 8.5, "gpu_hours": 0.1}
    folder.write_history(lines)
    expected = {"AP": 0.1, "AP50": 0.2, "best_AP": 0.1, "best_epoch": 1, "at_epoch": 1, "epochs": 2, "minutes": 1.5}
    assert read_run(tmp_path).numbers == expected | {"images_per_second": 8.5, "gpu_hours": 0.1}


def test_time_left_is_told_by_the_pace_of_the_last_epoch(write):
    folder = write("seed=0", result=None)
    line = {"epoch": 1, "steps": 100, "timing": {"seconds": 3600.0}}
    folder.write_history([line, {**line, "epoch": 2, "steps": 200}])
    folder.write_state("running", epoch=2, batches_done=50)
    assert read_run(folder.path).state == "running, epoch 3/50, 1 d 23 h left"
    folder.write_state("running", epoch=49, batches_done=0)
    folder.write_history([line] * 49)
    assert read_run(folder.path).state == "running, epoch 50/50, 1 h left"
    folder.write_history([])
    folder.write_state("running")
    assert read_run(folder.path).state == "running, epoch 1/50", "no pace yet"


def test_a_metric_that_the_data_set_does_not_define_is_no_number(tmp_path):
    RunFolder(tmp_path).write_result({"last": {"AP": 0.4, "AP_small": -1.0}})
    assert read_run(tmp_path).numbers == {"AP": 0.4}


def test_a_study_without_a_finished_run_has_a_note(write, show):
    write("seed=0", result=None).write_state("queued")
    write("seed=1", result=None).write_state("running", epoch=0)
    table = show("--seeds")
    assert [row[1] for row in table[1:3]] == ["queued", "running, epoch 1/50"]
    assert table[3] == ["no run has finished yet (2 runs)"]
    table = show()
    assert table[1][1] == "1 running, 1 queued"
    assert [row[0].rpartition(": ")[2] for row in table[2:4]] == ["queued", "running, epoch 1/50"], "full texts below"


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
        "type1": ["done", "1"],
        "type2": ["broken", "-"],
        "type3": ["done", "-"],
        "type4": ["broken", "-"],
        "-": ["no", "run"],
    }
    notes = [line.removeprefix(f"{tmp_path}/study/") for line in text.splitlines()[6:]]
    starts = [
        "dynamic_scale=type2: result.json: cannot be read: ",
        "dynamic_scale=type2: history.jsonl: cannot be read: 'utf-8' codec",
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
        table = show("--seeds")
        assert table[0] in (["seed", *NUMBERS], ["run", *NUMBERS]), content
        assert table[1][1:] == ROW, content
        assert table[2][0] in ("1", "seed=1"), content
        assert {"41.0", "41.0 ± 0.0"} & set(show()[1]), content


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


def test_a_seed_that_failed_before_its_config_stands_in_the_row_of_the_others(write, show, tmp_path):
    for seed in (0, 1):
        write("smooth=4", f"seed={seed}")
        write("smooth=8", f"seed={seed}")
    RunFolder(tmp_path / "study" / "seed=2,smooth=4").write_state("failed", reason="no data")
    table = show()
    assert [row[:3] for row in table[1:3]] == [["4", "2 done, 1 failed", "2"], ["8", "done", "2"]]
    assert table[3][0].endswith("seed=2,smooth=4: failed: no data")
    assert show("--where", "seed=2,smooth=4")[1][:2] == ["seed=2,smooth=4", "failed: no data"]


def test_points_that_were_submitted_and_have_no_folder_are_shown(write, show, tmp_path):
    write("smooth=4")
    points = ["smooth=4", "smooth=8", "smooth=16"]
    submission = Submission(tmp_path / "study/.submissions/0101-1", "study-0101-1", points, "snapshot")
    submission.folder.mkdir(parents=True)
    config = OmegaConf.to_yaml(OmegaConf.structured(load_config(["smooth=8"])))
    submission.config_file("smooth=8").write_text(config)
    submission.record_intent()
    submission.record_job("4711")
    RunFolder(tmp_path / "study" / "smooth=16").write_state("queued", submission="0101-1")
    assert [row[:2] for row in show()[1:]] == [
        ["4", "done"],
        ["8", "missing: submitted, but has no folder (job 4711_1)"],
        ["16", "queued, job 4711_2"],
    ]
    started = RunFolder(tmp_path / "study" / "smooth=4")
    text = started.config_text() or ""
    assert "num_classes: null" in text
    started.write_config(text.replace("num_classes: null", "num_classes: 91"))
    assert show()[0][:2] == ["smooth", "state"], "values that come from the data make no difference"
    (tmp_path / "study/manifest.jsonl").write_text("nonsense\n[]\n")
    assert [row[0] for row in show()[1:3]] == ["4", "16"], "a damaged manifest does not prevent the table"


@pytest.mark.parametrize("runs", ["nowhere", ".", "study", "study/base"])
def test_no_runs_or_a_wrong_folder_is_one_line_and_exit_code_1(write, tmp_path, refused, runs):
    (tmp_path / "pictures" / "cats").mkdir(parents=True)
    if runs != ".":
        write()
    assert "--runs" in refused("--runs", str(tmp_path / runs))


def test_an_unknown_study_names_those_there_are(write, tmp_path, refused):
    write(study="smooth")
    (tmp_path / "idle").mkdir()
    error = refused("smoth")
    assert "no study smoth" in error
    assert "smooth" in error
    assert "no runs in" in refused("idle")
