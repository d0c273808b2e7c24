from __future__ import annotations

import subprocess
import sys

import pytest
from scipy import stats

from analysis import compare, load
from fovea_detr.errors import UserError
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


def test_a_run_folder_that_is_not_there_is_named(pair, tmp_path, capsys):
    assert compare.main([pair[0], "study/dynamic_scale=type9", "--runs", str(tmp_path)]) == 1
    assert f"study/dynamic_scale=type9: no such run folder, neither here nor in {tmp_path}" in capsys.readouterr().err


def test_a_run_with_itself_differs_in_nothing(pair, tmp_path, capsys):
    assert compare.main([str(tmp_path / pair[0])] * 2) == 0
    assert capsys.readouterr().out.count("no difference") == 3


def test_rows_with_their_difference_and_interval(write, tmp_path, capsys):
    tops = {"type1": (0.30, 0.31, 0.32), "type2": (0.35, 0.37, 0.36)}
    for scale, scores in tops.items():
        for seed, top in enumerate(scores):
            categories = {"cat": top, "dog": 0.3 + seed / 100}
            last = {"AP": top, "AP_small": top / 2, "AP_by_category": categories}
            folder = write(f"dynamic_scale={scale}", f"seed={seed}", result={"last": last})
            folder.write_history([{"epoch": 1, "AP": top / 2, "loss": 2.0}, {"epoch": 2, "AP": top, "loss": 1.0}])
    assert compare.main(["dynamic_scale=type1", "type2", "--runs", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    told = stats.ttest_ind(tops["type2"], tops["type1"]).confidence_interval(0.95)
    ends = [f"[{100 * told.low:+.2f},", f"{100 * told.high:+.2f}]"]
    half = stats.ttest_ind(tops["type2"], tops["type1"]).confidence_interval(0.975)  # one of two categories is resolved
    wider = [f"[{100 * half.low:+.2f},", f"{100 * half.high:+.2f}]"]
    for line in (
        ["dynamic_scale", "type1", "type2"],
        ["AP", "31.0", "±", "1.0", "36.0", "±", "1.0"],
        ["AP", "+5.00", *ends, "better", "on", "these", "images"],
        ["cat", "+5.00", *wider, "better", "on", "these", "images"],
        ["2", "31.0", "36.0", "+5.00", "1.000", "1.000", "+0.0000"],
    ):
        assert line in lines, line
    (dog,) = [line for line in lines if line[:1] == ["dog"]]
    assert dog[1] == "+0.00"
    assert "not" in dog


def test_the_same_from_python(write, tmp_path):
    for scale, score in (("type1", 0.3), ("type2", 0.4)):
        for seed in range(3):
            write(f"dynamic_scale={scale}", f"seed={seed}", result={"last": {"AP": score + seed / 100}})
    found = load(tmp_path / "study").compare("type1", "dynamic_scale=type2")
    told = stats.ttest_ind([0.4, 0.41, 0.42], [0.3, 0.31, 0.32]).confidence_interval(0.95)
    line = found.loc["AP"]
    assert [line["difference"], line["low"], line["high"]] == pytest.approx([0.1, told.low, told.high])
    assert line["verdict"] == "better on these images"
    with pytest.raises(UserError, match="there is no such row; name it KEY=VALUE, or as in type1; type2"):
        load(tmp_path / "study").compare("type1", "type7")


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
