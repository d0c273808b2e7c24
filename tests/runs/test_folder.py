"""The run folder: writes are atomic, one process locks a folder, a heartbeat is not written too often."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from fovea_detr.errors import RunFolderError
from fovea_detr.runs import files
from fovea_detr.runs import folder as folder_module
from fovea_detr.runs.folder import RunFolder

WRITER = """
import sys
from fovea_detr.runs.folder import RunFolder
folder, number = RunFolder(sys.argv[1]), 0
while True:
    number += 1
    folder.write_result({"number": number, "text": str(number % 10) * 400_000})
    folder.write_history([{"epoch": epoch, "of": number} for epoch in range(3000)])
    if number == 1:
        print("writing", flush=True)
"""
HOLDER = """
import sys, time
from fovea_detr.runs.folder import RunFolder
folder = RunFolder(sys.argv[1])
folder.lock()
print("held", flush=True)
time.sleep(60)
"""


def start(code: str, folder: RunFolder) -> subprocess.Popen[str]:
    """A process that runs the code on the folder, after its first line of output."""
    process = subprocess.Popen([sys.executable, "-c", code, str(folder.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def read_whole(folder: RunFolder) -> int:
    """Check that both files are complete -> the number of the write of result.json."""
    result, history = folder.result(), folder.history()
    assert result is not None
    assert result["text"] == str(result["number"] % 10) * 400_000
    assert len(history) == 3000
    assert len({line["of"] for line in history}) == 1
    return result["number"]


def test_a_reader_sees_complete_files_of_a_writer_killed_at_any_moment(tmp_path):
    folder, seen = RunFolder(tmp_path), set()
    for attempt in range(40):
        if attempt >= 8 and len(seen) > 3:
            break
        process = start(WRITER, folder)
        end = time.monotonic() + 0.05 + 0.013 * attempt
        while time.monotonic() < end:
            seen.add(read_whole(folder))
        kill(process)
        read_whole(folder)
    assert len(seen) > 3, "the reader must have read while the files were replaced"


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    files.write_text(path, "old")

    def write_half(file) -> None:
        file.write(b"ne")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        files.write_atomic(path, write_half)
    assert path.read_text() == "old"


def test_a_folder_locked_by_another_process_is_refused_until_that_is_killed(tmp_path):
    folder = RunFolder(tmp_path / "study" / "point")
    holder = start(HOLDER, folder)
    with pytest.raises(RunFolderError, match="another process") as refused:
        folder.lock()
    assert "\n" not in str(refused.value)
    kill(holder)
    folder.lock()
    refused_too = subprocess.run([sys.executable, "-c", HOLDER, str(folder.path)], capture_output=True, text=True)
    assert "another process" in refused_too.stderr, "locked by this process now"
    folder.unlock()
    kill(start(HOLDER, folder))


def test_reading_never_writes_and_a_missing_file_is_none(tmp_path):
    folder = RunFolder(tmp_path / "nowhere")
    assert folder.config_text() is folder.state() is folder.result() is folder.provenance() is None
    assert folder.history() == []
    assert not folder.path.exists()


def test_what_is_written_is_read(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_config("smooth: 4\n")
    folder.write_provenance({"host": "größer"})
    folder.write_history([{"epoch": 1, "loss": float("inf")}, {"epoch": 2}])
    folder.write_result({"last": {"AP": 0.5}})
    assert folder.config_text() == "smooth: 4\n"
    assert folder.provenance() == {"host": "größer"}
    assert folder.history() == [{"epoch": 1, "loss": float("inf")}, {"epoch": 2}]
    assert folder.result() == {"last": {"AP": 0.5}}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.yaml", "provenance.json", "history.jsonl", "result.json"}, "no temporary file stays"


@pytest.mark.parametrize("state", folder_module.STATES)
def test_states(tmp_path, state):
    folder, before = RunFolder(tmp_path), time.time()
    folder.write_state(state, reason="a reason\nof two lines")
    written = folder.state()
    assert written is not None
    assert written["state"] == state
    assert written["reason"] == "a reason\nof two lines"
    assert before <= written["time"] <= time.time()


def test_an_unknown_state_is_a_bug(tmp_path):
    with pytest.raises(AssertionError, match="finished"):
        RunFolder(tmp_path).write_state("finished")


def test_heartbeat_holds_the_progress_and_is_not_written_at_every_step(tmp_path, monkeypatch):
    folder, now = RunFolder(tmp_path), [1000.0]
    monkeypatch.setattr(folder_module.time, "time", lambda: now[0])
    folder.write_state("running")
    seen = []
    for step in range(100):
        now[0] += 1.0
        folder.beat(epoch=3, batches_done=step)
        seen.append(folder.state())
    times = {state["time"] for state in seen}
    assert times == {1000.0, 1030.0, 1060.0, 1090.0}
    assert seen[-1] == {"state": "running", "time": 1090.0, "pid": seen[-1]["pid"], "epoch": 3, "batches_done": 89}


def test_the_log_is_appended_to(tmp_path: Path):
    for line in ("first", "second"):
        RunFolder(tmp_path).log(line)
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["first", "second"]


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"^\S*file/point: cannot write there \([^\n]*\); choose runs=FOLDER$"):
        RunFolder(tmp_path / "file" / "point").lock()
