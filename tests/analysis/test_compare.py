from __future__ import annotations

import subprocess
import sys

import pytest

from analysis import compare
from tests.analysis.made_up import provenance


@pytest.fixture
def pair(write):
    first, second = write("dynamic_scale=type1"), write("dynamic_scale=type2", "fovea.smooth=6.5")
    packages = {"torch": "2.7.0", "numpy": "2.0.0"}
    first.write_provenance(provenance())
    second.write_provenance(provenance(code={"sha": "f" * 16, "uncommitted": "77"}, packages=packages))
    first.write_history([{"epoch": 1, "AP": 0.1, "loss": 5.0}, {"epoch": 2, "AP": 0.2, "loss": 4.0}])
    second.write_history([{"epoch": 1, "AP": 0.15, "AP50": -1.0, "loss": 4.5}])
    return [f"study/{run.path.name}" for run in (first, second)]


def test_what_differs_and_the_curves_side_by_side(pair, tmp_path, capsys):
    assert compare.main([*pair, "--runs", str(tmp_path), "--metrics", "AP,AP50"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for line in (
        ["dynamic_scale", "type1", "type2"],
        ["fovea.smooth", "8", "6.5"],
        ["code.sha", "0123456789abcdef", "f" * 16],
        ["packages.torch", "2.6.0", "2.7.0"],
        ["1", "10.0", "15.0", "+5.00", "-", "-", "-", "5.000", "4.500", "-0.5000"],
        ["2", "20.0", "-", "-", "-", "-", "-", "4.000", "-", "-"],
    ):
        assert line in lines, line
    keys = [line[0] for line in lines if line]
    assert not {"packages.numpy", "seed", "model", "data.val", "study"} & set(keys), "equal values are not shown"
    assert ["outcome:", "no", "difference"] in lines


def test_a_run_with_itself_differs_in_nothing(pair, tmp_path, capsys):
    assert compare.main([str(tmp_path / pair[0])] * 2) == 0
    assert capsys.readouterr().out.count("no difference") == 3


@pytest.mark.parametrize("second", ["study/nowhere", "study", "empty"])
def test_no_run_is_one_line(pair, tmp_path, capsys, second):
    (tmp_path / "empty").mkdir()
    assert compare.main([pair[0], second, "--runs", str(tmp_path)]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_broken_folders_compare_as_far_as_they_can_be_read(pair, tmp_path, capsys):
    folder = tmp_path / pair[0]
    (folder / "history.jsonl").write_text("{")
    (folder / "provenance.json").write_text("[]")
    assert compare.main([*pair, "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "provenance.json: not what a run writes" in out
    assert "history.jsonl: cannot be read" in out


def test_it_never_imports_torch(pair, tmp_path):
    code = f"""
import sys
from analysis import compare
assert compare.main({[*pair, "--runs", str(tmp_path)]!r}) == 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
