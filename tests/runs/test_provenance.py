"""Provenance: the commit, a hash of uncommitted changes, and of the environment only the job ids."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import torch

from fovea_detr.runs import provenance
from fovea_detr.runs.provenance import code_version


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with one committed file, model.py, independent of the user's git settings."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    (tmp_path / "model.py").write_text("width = 256\n")
    (tmp_path / ".gitignore").write_text("runs/\n")
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    return tmp_path


def test_a_clean_checkout_is_its_commit(repository):
    head = subprocess.run(["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert code_version(repository) == {"sha": head.stdout.strip(), "uncommitted": ""}


def test_every_edit_of_a_tracked_file_is_another_hash(repository):
    versions = [code_version(repository)]
    for text in ("width = 128\n", "width = 64\n"):
        (repository / "model.py").write_text(text)
        versions.append(code_version(repository))
    assert len({version["uncommitted"] for version in versions}) == 3
    assert len({version["sha"] for version in versions}) == 1
    (repository / "model.py").write_text("width = 128\n")
    assert code_version(repository) == versions[1]
    subprocess.run(["git", "-C", str(repository), "add", "."], check=True)
    assert code_version(repository) == versions[1], "staged changes are the same code"


def test_a_new_file_counts_and_an_ignored_one_does_not(repository):
    (repository / "runs").mkdir()
    (repository / "runs" / "result.json").write_text("{}")
    assert code_version(repository)["uncommitted"] == ""
    (repository / "axis.py").write_text("class New: ...\n")
    first = code_version(repository)["uncommitted"]
    (repository / "axis.py").write_text("class Other: ...\n")
    assert len({"", first, code_version(repository)["uncommitted"]}) == 3


def test_without_git_there_is_no_version(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    nothing = {"sha": None, "uncommitted": None}
    assert code_version(tmp_path) == nothing
    monkeypatch.setenv("PATH", "")
    assert code_version(tmp_path) == nothing


def test_a_checkout_of_another_user_is_read_all_the_same(repository, monkeypatch):
    expected = code_version(repository)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    git = ["git", "-C", str(repository), "rev-parse", "HEAD"]
    assert "dubious ownership" in subprocess.run(git, capture_output=True, text=True).stderr
    assert code_version(repository) == expected
    assert expected["sha"]


def test_what_git_cannot_read_is_said_and_recorded(repository, capsys):
    (repository / ".git" / "HEAD").write_text("ref: refs/heads/gone\n")
    found = code_version(repository)
    assert found["sha"] is None
    assert "HEAD" in str(found["problem"])
    assert f"the code's version is not recorded: {found['problem']}" in capsys.readouterr().err


def test_the_facts_of_a_process(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SOME_TOKEN", "not to be recorded")
    facts = provenance.describe(torch.device("cpu"), world_size=4, total_batch_size=16)
    assert facts["job"] == {"SLURM_JOB_ID": "17"}
    assert facts["world_size"] == 4
    assert facts["total_batch_size"] == 16
    assert facts["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert "not to be recorded" not in json.dumps(facts)


def test_fingerprint_of_a_file(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"\0" * 3_000_000)
    expected = hashlib.sha256(b"\0" * 3_000_000).hexdigest()[:16]
    assert provenance.file_fingerprint(tmp_path / "weights.pth") == expected
