"""The snapshot of the code: its files, and one folder per version of the code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fovea_detr.errors import UserError
from fovea_detr.runs.provenance import CODE_DIR, code_version
from fovea_detr.study import snapshot


def git(code: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=code, check=True)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A checkout with one commit."""
    folder = tmp_path / "code"
    (folder / "fovea_detr").mkdir(parents=True)
    (folder / "fovea_detr/__init__.py").write_text("")
    (folder / "run.py").write_text("print(1)\n")
    (folder / "gone.py").write_text("")
    (folder / ".gitignore").write_text("*.pt\nruns/\n")
    (folder / "link").symlink_to("fovea_detr")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


CONTENT = {"fovea_detr/__init__.py", "run.py", ".gitignore", "link", "snapshot.json", "uncommitted.diff"}


def test_holds_edits_and_new_files_but_no_ignored_or_deleted_ones(code: Path, tmp_path: Path) -> None:
    (code / "run.py").write_text("print(2)\n")
    (code / "new file ü.py").write_text("")
    (code / "gone.py").unlink()
    for ignored in ("weights.pt", "runs/a.txt", ".cache/b", ".venv/c.py"):
        (code / ignored).parent.mkdir(exist_ok=True)
        (code / ignored).write_text("x")
    taken = snapshot.take(tmp_path / "study", code)
    assert names(taken) == CONTENT | {"new file ü.py"}
    assert (taken / "run.py").read_text() == "print(2)\n"
    assert os.readlink(taken / "link") == "fovea_detr"
    assert "+print(2)" in (taken / "uncommitted.diff").read_text()


def test_same_code_is_the_same_folder_and_an_edit_makes_another(code: Path, tmp_path: Path) -> None:
    first = snapshot.take(tmp_path / "study", code)
    assert snapshot.take(tmp_path / "study", code) == first
    (code / "fovea_detr/new.py").write_text("a = 1\n")
    second = snapshot.take(tmp_path / "study", code)
    (code / "fovea_detr/new.py").write_text("a = 2\n")
    third = snapshot.take(tmp_path / "study", code)
    assert len({first, second, third}) == 3
    assert sorted(path.name for path in first.parent.iterdir()) == sorted([first.name, second.name, third.name])


def test_holds_the_version_of_its_checkout(code: Path, tmp_path: Path) -> None:
    (code / "run.py").write_text("print(3)\n")
    version = code_version(code)
    taken = snapshot.take(tmp_path / "study", code)
    git(code, "commit", "-qam", "later")
    assert code_version(taken) == version
    assert json.loads((taken / "snapshot.json").read_text())["files"] == len(CONTENT) - 2 + 1


def test_data_and_results_inside_the_checkout_are_left_out(code: Path, tmp_path: Path) -> None:
    for folder in ("out/study", "coco"):
        (code / folder).mkdir(parents=True)
        (code / folder / "big").write_text("x")
    taken = snapshot.take(tmp_path / "study", code, leave_out=[code / "out", code / "coco"])
    assert not {"out", "coco"} & {path.name for path in taken.iterdir()}


def test_runs_are_left_out_only_at_the_top_of_the_checkout(code: Path, tmp_path: Path) -> None:
    (code / ".gitignore").write_text("*.pt\n")
    for folder in ("runs/study", "fovea_detr/runs", "tests/runs"):
        (code / folder).mkdir(parents=True)
        (code / folder / "module.py").write_text("")
    taken = names(snapshot.take(tmp_path / "study", code))
    assert {"fovea_detr/runs/module.py", "tests/runs/module.py"} <= taken
    assert not any(name.startswith("runs/") for name in taken)


def test_the_snapshot_of_this_checkout_holds_the_package_runs() -> None:
    assert {"fovea_detr/runs/state.py", "tests/runs/test_state.py", "run.py"} <= set(snapshot.listed(CODE_DIR))


def test_a_failed_copy_leaves_no_snapshot(code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(snapshot.shutil, "copy2", full)
    with pytest.raises(OSError, match="no space"):
        snapshot.take(tmp_path / "study", code)
    assert list((tmp_path / "study/.snapshots").iterdir()) == []


def test_without_git_the_program_is_copied(code: Path, tmp_path: Path) -> None:
    shutil.rmtree(code / ".git")
    taken = snapshot.take(tmp_path / "study", code)
    assert {"run.py", "fovea_detr/__init__.py"} <= names(taken)
    assert code_version(taken) == {"sha": None, "uncommitted": None}


def test_large_files_are_refused_by_name(code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MOST_BYTES", 1000)
    (code / "film.mp4").write_bytes(bytes(2000))
    with pytest.raises(UserError, match=r"film\.mp4"):
        snapshot.take(tmp_path / "study", code)
