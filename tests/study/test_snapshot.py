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


def test_submodules_and_nested_clones_are_copied(code: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for folder in (other, code / "clone"):
        folder.mkdir()
        (folder / "inner.py").write_text("a = 1\n")
        (folder / "data.pt").write_text("")
        (folder / ".gitignore").write_text("*.pt\n")
        git(folder, "init", "-q")
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", "first")
    git(code, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(other), "sub")
    (code / "empty").mkdir()
    taken = names(snapshot.take(tmp_path / "study", code))
    assert {"clone/inner.py", "sub/inner.py"} <= taken
    assert not {"clone/data.pt", "sub/data.pt"} & taken
    first = snapshot.take(tmp_path / "study", code)
    (code / "clone/inner.py").write_text("a = 2\n")
    assert snapshot.take(tmp_path / "study", code) != first


def test_a_name_that_is_not_utf_8_is_copied(code: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.py")
    (code / odd).write_text("a = 1\n")
    taken = snapshot.take(tmp_path / "study", code)
    assert (taken / odd).read_text() == "a = 1\n"
    (code / odd).write_text("a = 2\n")
    assert code_version(code) != code_version(taken)


def test_relative_links_out_of_the_tree_lead_to_the_same_place(code: Path, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/values.yaml").write_text("a: 1\n")
    (code / "folder").symlink_to("../shared")
    (code / "file.yaml").symlink_to("../shared/values.yaml")
    (code / "dangling").symlink_to("../nowhere")
    taken = snapshot.take(tmp_path / "runs/deep/study", code)
    assert (taken / "folder/values.yaml").read_text() == "a: 1\n"
    assert not (taken / "file.yaml").is_symlink(), "its content may change later"
    assert (taken / "dangling").is_symlink()


def test_studies_inside_the_checkout_are_no_code(code: Path, tmp_path: Path) -> None:
    """`runs=results`, and those of other commands: neither in the snapshot nor in the version of the code."""
    version, first = code_version(code), snapshot.take(tmp_path / "study", code)
    for name in ("results/a/manifest.jsonl", "results/a/seed=1/state.json", "more/b/seed=2/state.json"):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text("{}")
        (code / name).with_name("checkpoint.bin").write_text("large")
    assert code_version(code) == version
    assert snapshot.take(tmp_path / "study", code) == first


def test_a_snapshot_may_be_run_by_the_group_if_the_study_may(code: Path, tmp_path: Path) -> None:
    (code / "run.py").chmod(0o700)
    before = os.umask(0o002)
    try:
        taken = snapshot.take(tmp_path / "study", code)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (taken, taken / "run.py", taken / ".gitignore")}
    assert modes == {taken.name: 0o775, "run.py": 0o775, ".gitignore": 0o664}
