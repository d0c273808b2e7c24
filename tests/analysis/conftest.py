from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from analysis import collect
from analysis.tables import published
from fovea_detr.compose import load_config
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.points import point_name

RESULT = {"last": {"AP": 0.41, "AP50": 0.622}, "best": {"epoch": 45, "AP": 0.42}, "epochs": 50, "minutes": 1500.0}


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture
def nothing_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that count columns or lines."""
    monkeypatch.setattr(published, "entries", list)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., RunFolder]:
    """Write the folder of a finished run with these overrides."""

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
    """Run the command, which must succeed -> its lines, split at two or more spaces."""

    def collected(*arguments: str) -> list[list[str]]:
        assert collect.main([*arguments, "--runs", str(tmp_path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]

    return collected


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command, which must fail -> its only line."""

    def collected(*arguments: str) -> str:
        assert collect.main(["--runs", str(tmp_path), *arguments]) == 1
        out, error = capsys.readouterr()
        assert out == ""
        assert error.count("\n") == 1
        assert error.startswith("error: ")
        return error

    return collected
