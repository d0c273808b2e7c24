"""The figures of generated run folders: numbers, labels, and no overlapping text."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from omegaconf import OmegaConf

from analysis import Study, load, plots
from analysis.figures.drawing import variants_of
from analysis.figures.style import COLUMN_INCHES, ENDINGS, line_styles
from analysis.tables.frames import over_seeds
from fovea_detr.compose import load_config
from fovea_detr.config.schema import Config
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.points import point_name
from tests.launch import ROOT

SCRIPT = Path(plots.__file__)
Write = Callable[..., RunFolder]


def history(epochs: int, top: float, gpus: int = 4, categories: Sequence[str] = ("cat", "dog")) -> list[dict[str, Any]]:
    """AP rises to `top` at epoch 50; the categories are 0.1 above and below it. 30 minutes per epoch."""
    lines = []
    for epoch in range(1, epochs + 1):
        ap = top * math.sqrt(epoch / 50)
        by_category = {name: ap + 0.1 * (-1) ** i for i, name in enumerate(categories)}
        losses = {"loss": 9 / epoch, "loss_classification": 1 / epoch, "loss_l1": 2 / epoch, "loss_giou": 3 / epoch}
        timing = {"seconds": 1800, "total_seconds": 1800 * epoch, "gpu_hours": gpus * epoch / 2}
        lines.append(
            {"epoch": epoch, **losses, "AP": ap, "AP50": -1.0, "AP_by_category": by_category, "timing": timing}
        )
    return lines


@cache
def composed(*overrides: str) -> Config:
    return load_config(list(overrides))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a run folder: `write("dynamic_scale=type1", "seed=1", top=0.4, epochs=50)`."""

    def write_run(
        *overrides: str, top: float = 0.4, epochs: int = 50, study: str = "study", gpus: int = 4
    ) -> RunFolder:
        folder = RunFolder(tmp_path / "runs" / study / point_name(overrides))
        seed = next((int(one[5:]) for one in overrides if one.startswith("seed=")), 0)
        config = composed(*(one for one in overrides if not one.startswith("seed=")))
        folder.write_config(OmegaConf.to_yaml(OmegaConf.structured(replace(config, seed=seed))))
        folder.write_provenance({"device": "NVIDIA V100" if gpus else "x86_64", "world_size": max(1, gpus)})
        lines = history(epochs, top, gpus)
        folder.write_history(lines)
        folder.write_state("done" if epochs == 50 else "running")
        if epochs == 50:
            cost = {"minutes": 1500.0, "gpu_hours": 25.0 * gpus}
            folder.write_result({"last": {k: v for k, v in lines[-1].items() if k.startswith("AP")}, **cost})
        return folder

    return write_run


@pytest.fixture
def seeds(write: Write, tmp_path: Path) -> Study:
    """Two seeds of type1, three of type2, one of type3 before its learning-rate drop."""
    for seed, top in enumerate((0.38, 0.42)):
        write("dynamic_scale=type1", f"seed={seed}", top=top)
    for seed, top in enumerate((0.43, 0.44, 0.48)):
        write("dynamic_scale=type2", f"seed={seed}", top=top)
    write("dynamic_scale=type3", epochs=40)
    return load(tmp_path / "runs")


# ---- tables --------------------------------------------------------------------------------------


def test_one_row_per_run_with_its_cost(seeds):
    runs = seeds.runs.set_index(["variant", "seed"])
    assert runs.loc[("type1", 1), "AP"] == pytest.approx(0.42)
    assert runs.loc[("type1", 1), "gpu_hours"] == pytest.approx(100)
    assert runs.loc[("type3", 0), "gpu_hours"] == pytest.approx(40 * 0.5 * 4)
    assert "AP50" not in runs, "COCOeval's -1 is no number"
    assert list(seeds.epochs.columns[:6]) == ["study", "variant", "run", "seed", "counts", "finished"]
    assert seeds.epochs["dynamic_scale"].unique().tolist() == ["type1", "type2", "type3"], "axes are columns"
    assert len(seeds.epochs) == 5 * 50 + 40
    assert seeds.problems == []


def test_a_run_on_a_cpu_has_no_gpu_hours_anywhere(write, tmp_path):
    write("seed=0", gpus=0)
    study = load(tmp_path / "runs")
    assert "gpu_hours" not in study.runs
    assert study.epochs["gpu_hours"].isna().all()
    assert study.table()["gpu_hours"].isna().all()


def test_variants_are_named_by_what_they_are(write, tmp_path):
    write()
    write("smooth=4")
    folder = write("smooth=16", "dynamic_scale=type3", "seed=3")
    folder.path.rename(folder.path.parent / "tuesday")
    write("mixture=head")
    assert sorted(load(tmp_path / "runs").runs["variant"]) == [
        "smooth=16, type3, mixture=none",
        "smooth=4, type2, mixture=none",
        "smooth=8, type2, head",
        "smooth=8, type2, mixture=none",
    ]


def test_runs_of_two_studies_have_the_study_in_their_names(write, tmp_path):
    write("seed=0", study="a")
    write("seed=0", study="b")
    assert load(tmp_path / "runs").runs["variant"].tolist() == ["a: seed=0", "b: seed=0"]
    for study in (load(tmp_path / "runs", ["b"]), load(tmp_path / "runs" / "b")):
        assert study.runs["variant"].tolist() == ["seed=0"]


@pytest.mark.parametrize(("file", "content"), [("history.jsonl", '{"epoch": 1, '), ("config.yaml", "a: [")])
def test_a_broken_folder_is_named(write, tmp_path, file, content):
    write("seed=1")
    folder = write("seed=2")
    (folder.path / file).write_text(content)
    study = load(tmp_path / "runs")
    assert not study.epochs.empty
    assert file == "history.jsonl" or any(line.startswith(f"{folder.path}: {file}") for line in study.problems)


# ---- numbers -------------------------------------------------------------------------------------


def test_the_line_is_the_mean_and_the_band_one_sample_deviation(seeds):
    (axes,) = plots.learning_curves(seeds.epochs).axes
    tops, style = np.array([0.43, 0.44, 0.48]), line_styles(["type1", "type2", "type3"])["type2"]
    (line,) = [one for one in axes.lines if one.get_color() == style["color"] and one.get_linewidth() > 1]
    tops = 100 * tops
    expected = tops.mean() * np.sqrt(np.arange(1, 51) / 50)
    np.testing.assert_allclose(np.asarray(line.get_ydata(), dtype=float), expected)
    band = [one for one in axes.collections if isinstance(one, PolyCollection)][1].get_paths()[0].vertices
    at_end = np.asarray(band)[np.asarray(band)[:, 0] == 50, 1]
    assert [at_end.min(), at_end.max()] == pytest.approx(
        [tops.mean() - tops.std(ddof=1), tops.mean() + tops.std(ddof=1)]
    )


def test_the_mean_ends_where_its_first_seed_ends(write, tmp_path):
    write("seed=0", top=0.2, epochs=44)
    write("seed=1", top=0.9, epochs=45)
    epochs = load(tmp_path / "runs").epochs.assign(counts=True)
    assert over_seeds(epochs, "epoch", "AP")["x"].tolist() == list(range(1, 45))


def test_the_time_axis_is_gpu_hours_or_minutes_if_a_run_had_no_gpu(write, tmp_path):
    write("seed=0")
    epochs = load(tmp_path / "runs").epochs
    assert plots.time_column(epochs) == "gpu_hours"
    assert epochs["gpu_hours"].iloc[-1] == pytest.approx(100)
    write("seed=1", gpus=0)
    epochs = load(tmp_path / "runs").epochs
    assert plots.time_column(epochs) == "minutes"
    (axes,) = plots.learning_curves(epochs, "minutes").axes
    assert axes.get_xlabel() == "minutes"


def test_a_variant_that_has_not_finished_is_marked_in_every_figure(seeds):
    for name, figure in plots.all_figures(seeds).items():
        assert any("not finished" in text.get_text() for text in texts(figure)), name
        marks = [line for axes in figure.axes for line in axes.lines if line.get_markerfacecolor() == "white"]
        assert marks, name


def test_dots_are_means_with_the_number_written_beside(seeds):
    written = [text.get_text() for text in texts(plots.final_scores(seeds.runs))]
    assert "40.0 ± 2.8" in written
    assert "45.0 ± 2.6" in written
    assert "type2 (n=3)" in written


def test_category_differences_are_of_means_against_the_baseline(seeds):
    (axes,) = plots.by_category(seeds.categories, "type1").axes
    (line,) = [one for one in axes.lines if one.get_marker() == line_styles(variants_of(seeds.runs))["type2"]["marker"]]
    np.testing.assert_allclose(np.asarray(line.get_xdata(), dtype=float), [5, 5])
    assert axes.get_xlabel() == "AP minus AP of type1"
    (axes,) = plots.by_category(seeds.categories).axes
    assert axes.get_xlabel() == "AP", "no baseline is chosen by itself"


# ---- style ---------------------------------------------------------------------------------------


def texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]  # type: ignore[misc]


def drawn_texts(figure: Figure) -> list[tuple[str, Any]]:
    """Every drawn text and its box in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    low = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    outside = {id(t) for axis in low for t in axis.get_ticklabels() if not within(axis, t)}
    found = [text for text in texts(figure) if id(text) not in outside]
    return [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in found]


def within(axis: Any, label: Text) -> bool:
    """Whether a tick label is drawn: matplotlib keeps labels beyond the limits but does not draw them."""
    low, high = sorted(axis.get_view_interval())
    place = label.get_position()[0 if axis.axis_name == "x" else 1]
    return low - 1e-9 <= place <= high + 1e-9


@pytest.mark.parametrize("grid", [1, 3], ids=["few variants", "many variants"])
def test_no_text_overlaps_another_or_leaves_the_figure(write, tmp_path, grid):
    for scale, smooth in itertools.product(("type1", "type2", "type3", "type4"), ("4", "8", "16")[:grid]):
        for seed in (0, 1):
            early = scale == "type4"
            write(f"dynamic_scale={scale}", f"smooth={smooth}", f"seed={seed}", top=0.4, epochs=35 if early else 50)
    for name, figure in plots.all_figures(load(tmp_path / "runs")).items():
        assert figure.get_figwidth() == COLUMN_INCHES
        places = drawn_texts(figure)
        for (one, a), (other, b) in itertools.combinations(places, 2):
            assert not a.padded(-1).overlaps(b.padded(-1)), (name, one, other)
        for text, box in places:
            assert box.x0 >= -1, (name, text)
            assert box.y0 >= -1, (name, text)
            assert box.x1 <= figure.bbox.x1 + 1, (name, text)
            assert box.y1 <= figure.bbox.y1 + 1, (name, text)


def test_line_styles_differ_for_32_variants():
    found = line_styles([str(i) for i in range(32)]).values()
    assert len({(style["color"], str(style["linestyle"])) for style in found}) == 32


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_writes_every_figure_in_three_formats_and_never_imports_torch(seeds, tmp_path):  # noqa: ARG001
    code = f"import sys; sys.argv[0] = {str(SCRIPT)!r}; from analysis import plots; code = plots.main(sys.argv[1:]); "
    code += "sys.exit(code or int('torch' in sys.modules) * 99)"
    command = [sys.executable, "-c", code, "study", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "plots")]
    done = subprocess.run(command, cwd=SCRIPT.parent.parent, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    names = {"by_epoch", "by_time", "final", "losses", "categories"}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {f"{n}{e}" for n in names for e in ENDINGS}
    assert all(name in done.stdout for name in names)


def test_the_same_runs_give_the_same_files(seeds, tmp_path):  # noqa: ARG001
    for out in ("a", "b"):
        assert plots.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / out)]) == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--runs", "nowhere"], "no such folder"),
        (["other"], "no study other"),
        (["--metric", "AP_huge"], "has the metric AP_huge"),
        (["--baseline", "type9"], "there is no such row; name it KEY=VALUE, or as in type1; type2; type3"),
    ],
)
def test_an_error_is_one_line(seeds, tmp_path, capsys, monkeypatch, arguments, words):  # noqa: ARG001
    monkeypatch.chdir(tmp_path)
    assert plots.main([*arguments, "--out", "plots"]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_long_name_is_written_in_lines(write, tmp_path):
    write("schedule.epochs=50", "schedule.lr_drop=40", "dynamic_scale=type1")
    study = load(tmp_path / "runs")
    (text,) = [text.get_text() for text in plots.learning_curves(study.epochs).legends[-1].get_texts()]
    assert text.replace("\n", "") == study.rows[0].label
    assert max(map(len, text.split("\n"))) <= 40


def test_runs_without_an_evaluation_are_one_line(write, tmp_path, capsys):
    write(epochs=0)
    assert plots.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "plots")]) == 1
    assert "none of 1 runs has the metric AP yet" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["plots.py", "fovea_maps.py"])
def test_without_matplotlib_the_extra_is_named_in_one_line(script: str) -> None:
    code = (
        f"import runpy, sys; sys.modules['matplotlib'] = None; runpy.run_path('analysis/{script}', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: figures need matplotlib: pip install -e '.[notebooks]'\n"
