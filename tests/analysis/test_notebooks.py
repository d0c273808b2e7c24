"""The notebooks are stored without outputs and run from top to bottom on two real runs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from analysis import fovea_maps, plots
from tests.launch import ROOT, run_well

NOTEBOOKS = sorted((ROOT / "analysis").glob("*.ipynb"))
FIGURES = {"ablation_table": 0, "learning_curves": 5, "fovea_maps": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two very short runs of one study: type2 and plain DETR."""
    root = tmp_path_factory.mktemp("real")
    sizes = ["schedule.epochs=2", "data.train_images=96", "data.val_images=16", f"data.cache={root / 'cache'}"]
    for point in ("dynamic_scale=type2", "model=detr_focal_tiny"):
        run_well("experiment=tiny", "study=short", f"runs={root / 'runs'}", point, *sizes)
    return root / "runs"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.metadata == {}
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata.language_info) == {"name"}


def test_all_notebooks_are_known():
    assert {path.stem for path in NOTEBOOKS} == set(FIGURES)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(runs, monkeypatch, path):
    monkeypatch.setenv("FOVEA_RUNS", str(runs))
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[path.stem]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@pytest.mark.slow
def test_the_commands_draw_the_same_runs(runs, tmp_path, capsys):
    assert plots.main(["short", "--runs", str(runs), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "categories.svg").exists()
    assert plots.main(["short", "--runs", str(runs), "--figure", "paper", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().err == "", "curves, bars and heads: nothing is left out"
    (fovea,) = (runs / "short").glob("*type2*")
    assert fovea_maps.main([str(fovea), "--image", "1", "--to", str(tmp_path / "fovea.pdf")]) == 0
    assert "query" in capsys.readouterr().out
