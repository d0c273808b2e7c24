"""The page in a real browser: a silent console, no requests, sorting, and no overflow."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image

from analysis import collect
from analysis.output import commands, pictures, report
from analysis.reading.folders import find_runs
from analysis.reading.runs import read_run
from analysis.tables.rows import ranked
from analysis.tables.table import make_table
from fovea_detr.compose import load_config
from fovea_detr.runs.folder import RunFolder
from fovea_detr.study.manifest import Point, Submission
from tests.analysis.browser import CHROMIUM, Page, browser
from tests.analysis.made_up import write_every_kind, write_study
from tests.launch import ROOT, run_well

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_every_kind(root / "dynamic_scale")
    write_samples(next(root.glob("dynamic_scale/*type2*")))
    path = root / "report.html"
    assert collect.main(["--runs", str(root), "--baseline", "dynamic_scale=type1", "--to", str(path)]) == 0
    return path


def write_samples(run: Path) -> None:
    """Two pictures, one of them larger than the page shows it, and one that is cut off."""
    (run / "samples").mkdir()
    for name, size in (("7", (800, 600)), ("12", (90, 60))):
        Image.new("RGB", size, "teal").save(run / "samples" / f"{name}.jpg")
    (run / "samples" / "9.jpg").write_bytes((run / "samples" / "7.jpg").read_bytes()[:200])


def test_sample_predictions_are_part_of_the_page_and_small(page_file: Path) -> None:
    found = re.findall(
        r'<img loading="lazy" src="data:image/jpeg;base64,([^"]+)" alt="([^"]+)">', page_file.read_text()
    )
    assert [unescape(alt).rpartition(", ")[2] for _, alt in found] == ["image 12", "image 7"]
    sizes = [Image.open(io.BytesIO(base64.b64decode(content))).size for content, _ in found]
    assert sizes == [(90, 60), (480, 360)]


def test_a_page_takes_only_so_many_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_every_kind(tmp_path / "dynamic_scale")
    runs = find_runs(tmp_path)
    for run in runs:
        if "seed=1" in run.path.name and run.is_done:
            write_samples(run.path)
    rows = ranked(make_table(runs).rows, "AP")
    every = pictures.pictures(rows)
    assert len(every) == 3
    one = sum(len(uri) for _, uri in every[rows[0].label])
    monkeypatch.setattr(pictures, "MOST_BYTES", 2.5 * one)
    assert list(pictures.pictures(rows)) == [row.label for row in rows[:2]]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def test_the_page_contains_question_failures_provenance_and_commands(page_file):
    text = unescape(page_file.read_text())
    for part in (
        "Which scale of the fovea is worth its parameters?",
        "9 done, 1 running, 1 queued, 1 preempted, 1 failed, 1 no run",
        "failed: step 7, rank 0: losses are not finite <nan>",
        "running, epoch 13/50",
        "before the learning-rate drop after 40: not comparable",
        "fedcba9 + changes 77 (3 runs)",
        "python run.py dynamic_scale=type2 seed=1",
    ):
        assert part in text, part
    assert text.count("<svg viewBox") > 2
    assert "http://" not in text
    assert "https://" not in text


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [380, 1400])
def test_nothing_overflows_and_the_console_is_silent(page_file, tab, width, dark):
    tab.complaints.clear()
    tab.requests.clear()
    tab.open(page_file, width, dark=dark)
    assert tab.ask("innerWidth") == width
    assert tab.ask("document.documentElement.scrollWidth") <= width
    outside = """[...document.querySelectorAll("body *")].filter(e => !e.closest(".wide") &&
        (e.getBoundingClientRect().right > innerWidth + 0.5 || e.getBoundingClientRect().left < -0.5)).length"""
    assert tab.ask(outside) == 0
    paper = tab.ask("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
    assert tab.complaints == []
    assert {url for url in tab.requests if not url.startswith("data:")} == {page_file.as_uri()}


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [380, 1400])
def test_a_click_sorts_and_a_second_click_reverses(page_file, tab, width):
    tab.open(page_file, width)
    column = 'h => h.textContent.trim() === "AP"'
    heads = '[...document.querySelectorAll("table.sortable th")]'
    cell = f"r.cells[{heads}.findIndex({column})]"
    ask = f'[...document.querySelectorAll("table.sortable tbody tr")].map(r => {cell}.dataset.value)'
    before = tab.ask(ask)
    button = f'{heads}.find({column}).querySelector("button")'
    tab.click(button)
    descending = tab.ask(ask)
    numbers = sorted((float(text) for text in before if text), reverse=True)
    assert [float(text) for text in descending if text] == numbers
    assert descending[-1] == "", "empty cells are last"
    assert tab.ask(f"{heads}.find({column}).ariaSort") == "descending"
    tab.click(button)
    assert [float(text) for text in tab.ask(ask) if text] == numbers[::-1]
    tab.click(f'{heads}[0].querySelector("button")')
    first = tab.ask('[...document.querySelectorAll("table.sortable tbody tr")].map(r => r.cells[0].textContent)')
    names = ["type1, mixture=none", "type2, head", "type2, mixture=none", "type3, mixture=none", "type4, mixture=none"]
    assert [name.strip() for name in first] == ["seed=9", *names]
    assert tab.ask('document.querySelectorAll("table.sortable th[aria-sort]").length') == 1
    assert tab.complaints == []


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 rows with all metrics."""
    root = tmp_path_factory.mktemp("forty")
    write_study(root / "grid", 120, broken_share=0)
    assert collect.main(["--runs", str(root), "--metrics", "all", "--to", str(root / "page.html")]) == 0
    return root / "page.html"


@pytest.mark.slow
@needs_chromium
def test_paper_loses_no_column(page_file, forty, tab):
    for file, width in ((page_file, 1047), (forty, 1047)):  # A4 across, without its margins, at 96 pixels an inch
        tab.open(file, width, media="print")
        assert tab.ask("Math.max(...[...document.querySelectorAll('table')].map(t => t.scrollWidth))") <= width
        assert tab.ask("getComputedStyle(document.querySelector('.wide')).overflow") == "visible"


@pytest.mark.slow
@needs_chromium
def test_forty_rows_have_eight_in_colour_and_a_tick_chooses_another(forty, tab):
    tab.open(forty, 1400)
    chosen = "document.querySelectorAll('figure:first-of-type .curve.chosen').length"
    assert tab.ask(chosen) == 8
    assert tab.ask("[...document.querySelectorAll('.legend li')].filter(l => l.checkVisibility()).length") == 8
    tab.click("document.querySelector('#results input:not(:checked)')")
    assert tab.ask(chosen) == 9
    tab.click("document.querySelector('.legend li.chosen button')")
    assert tab.ask(chosen) == 8
    assert tab.ask("document.querySelectorAll('#results input:checked').length") == 8


@pytest.mark.slow
@needs_chromium
def test_the_filter_keeps_the_rows_that_hold_every_word(page_file, tab):
    tab.open(page_file, 1400)
    tab.ask("(f => {f.value = 'type2 done'; f.dispatchEvent(new Event('input'))})(document.getElementById('filter'))")
    shown = (
        "[...document.querySelectorAll('#results tbody tr')].filter(r => r.checkVisibility()).map(r => r.dataset.row)"
    )
    assert tab.ask(shown) == ["type2, mixture=none"]


@pytest.mark.slow
@needs_chromium
def test_the_pointer_reads_a_value_off_a_curve(page_file, tab):
    tab.open(page_file, 1400)
    named = "find(one => one.dataset.row?.startsWith('type3'))"
    end = f"[...document.querySelectorAll('figure .curve')].{named}.querySelector('circle')"
    tab.ask(f"{end}.scrollIntoView({{block: 'center'}})")
    tab.point_at(end)
    cell = f"[...document.querySelectorAll('#results tr')].{named}.cells[1].textContent"
    told, printed = tab.ask("document.querySelector('figure output').textContent"), tab.ask(cell)
    assert told == f"type3, mixture=none: {printed.split()[0]} at epoch 50"


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [380, 1400])
def test_header_and_names_stay_and_the_metric_comes_first(page_file, tab, width):
    tab.open(page_file, width)
    assert tab.ask("document.querySelector('#results thead th:nth-child(2)').textContent") == "AP"
    assert tab.ask("document.querySelector('#results thead th:nth-child(2)').getBoundingClientRect().right") <= width
    wide = "document.querySelector('.wide')"
    tab.ask(f"{wide}.scrollLeft = 300")
    name = f"{wide}.querySelector('tbody th').getBoundingClientRect().left - {wide}.getBoundingClientRect().left"
    assert abs(tab.ask(name)) <= 2
    assert tab.ask(f"getComputedStyle({wide}.querySelector('thead th')).position") == "sticky"


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [380, 1400])
def test_axe_finds_no_fault(page_file, forty, tab, width, dark):
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
    for file in (page_file, forty):
        tab.open(file, width, dark=dark)
        tab.ask(axe + "; 0")
        found = tab.ask("axe.run().then(r => r.violations.map(v => `${v.impact} ${v.id}: ${v.nodes[0].html}`))")
        assert found == []


def test_what_changed_since_the_page_before_and_since_a_date(write, tmp_path):
    for scale, top in (("type1", 0.4), ("type2", 0.41)):
        write(f"dynamic_scale={scale}", result={"last": {"AP": top}})
    page = tmp_path / "page.html"
    command = ["--runs", str(tmp_path), "--metrics", "AP", "--to", str(page)]
    assert collect.main(command) == 0
    assert "Changed since" not in page.read_text()
    write("dynamic_scale=type1", "seed=1", result={"last": {"AP": 0.44}})
    write("dynamic_scale=type3", result={"last": {"AP": 0.5}})
    assert collect.main(command) == 0
    text = unescape(page.read_text())
    assert "<li>type1: AP 40.0 → 42.0 ± 2.8</li>" in text
    assert "<li>type3: new, AP 50.0, state done</li>" in text
    assert "type2: " not in text.partition("<h2>Results")[0]
    assert collect.main([*command, "--since", "2999-01-01"]) == 0
    assert "<p>Nothing.</p>" in page.read_text()
    assert collect.main([*command, "--since", "2020-01-01"]) == 0
    assert unescape(page.read_text()).count("seed=1: done</li>") == 1


@pytest.mark.slow
def test_the_printed_command_runs(tmp_path):
    """It names the run that is there: typed again, it is done already."""
    small = ["schedule.epochs=2", "data.train_images=64", "data.val_images=8", f"data.cache={tmp_path / 'cache'}"]
    run_well("experiment=tiny", "-m", f"runs={tmp_path / 'runs'}", "seed=0,1", *small)
    folder = tmp_path / "runs" / "tiny"
    for point in sorted(path for path in folder.iterdir() if (path / "config.yaml").exists()):
        run = read_run(point)
        typed = commands.command(run)
        assert typed is not None
        done = subprocess.run(
            typed.replace("python ", f"{sys.executable} ", 1), shell=True, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert f"{point.name}: done already" in done.stdout
        made = commands.from_settings(run)
        assert made is not None
        again = run_well(
            *made[1:], f"runs={tmp_path / 'runs'}", f"data.cache={tmp_path / 'cache'}", "device=cpu", "threads=1"
        )
        assert "done already" in again


@pytest.mark.slow
@needs_chromium
def test_a_page_of_a_study_with_nothing_finished(write, tab, tmp_path):
    write("seed=0", result=None).write_state("queued")
    assert collect.main(["--runs", str(tmp_path), "--to", str(tmp_path / "page.html")]) == 0
    tab.open(tmp_path / "page.html", 380)
    assert "no run has finished yet" in tab.ask("document.body.innerText")
    assert tab.complaints == []


def test_the_header_of_a_study_is_read_with_its_continuation_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "SWEEPS", tmp_path)
    (tmp_path / "one.yaml").write_text(
        "# @package _global_\n# Question: Why\n#           so?\n# Cost: 1\nstudy: one\n# No: x\n"
    )
    assert report.header("one") == {"Question": "Why so?", "Cost": "1"}
    assert report.header("two") == {}


@pytest.mark.parametrize(
    ("point", "words", "wanted"),
    [
        ("seed=1", ["run.py", "seed=1", "data.root=/my coco"], "python run.py seed=1 'data.root=/my coco'"),
        ("dynamic_scale=type2", ["run.py", "-m", "dynamic_scale=type1,type2"], "python run.py dynamic_scale=type2"),
        (
            "experiment=tiny,seed=1",
            ["run.py", "--multirun", "sweeps=tiny", "seed=range(3)", "data.root=/d", "hydra/launcher=submitit_slurm"],
            "python run.py sweeps=tiny seed=1 data.root=/d experiment=tiny",
        ),
        ("seed=1", ["run.py", "-m", "seed=0,1", "model.x=[1,2]"], "python run.py seed=1 'model.x=[1,2]'"),
        ("base", ["run.py", "-m"], "python run.py"),
        ("base", ["/code/run.py"], "python /code/run.py"),
        ("base", ["/env/bin/fovea-detr", "seed=1"], "python run.py seed=1"),
        ("base", ["python3"], None),
        ("base", ["python3.11-dbg", "run.py", "seed=1"], "python run.py seed=1"),
        ("base", ["/env/fovea_detr/__main__.py", "seed=1"], "python run.py seed=1"),
        ("base", ["python", "/env/fovea_detr/study/__main__.py", "relaunch", "mystudy"], None),
        ("cut-0123456789ab", ["run.py", "-m", "seed=0,1"], None),
        ("seed=1", ["run.py", "-m", "seed=0,1", "data.workers=1,2"], None),
        ("seed=1", [], None),
        ("seed=1", "run.py", None),
    ],
)
def test_the_command_of_a_point_is_its_sweep_for_one_point(tmp_path, point, words, wanted):
    folder = RunFolder(tmp_path / point)
    folder.write_provenance({"command": words})
    assert commands.command(read_run(folder.path)) == wanted


@pytest.mark.parametrize("python", ["python", "python3", "python3.12"])
def test_a_command_submitted_to_slurm_reads_as_the_one_typed(tmp_path, monkeypatch, python):
    monkeypatch.setattr(sys, "argv", ["run.py", "-m", "dynamic_scale=type1,type2", "hydra/launcher=submitit_slurm"])
    monkeypatch.setattr(sys, "executable", f"/env/bin/{python}")
    folder = RunFolder(tmp_path / "dynamic_scale=type2")
    recorded_by_sweep = Submission.new(tmp_path, [Point("", load_config(), {})], tmp_path, "slurm").command
    for recorded in (sys.argv, recorded_by_sweep):
        folder.write_provenance({"command": recorded})
        assert commands.command(read_run(folder.path)) == "python run.py dynamic_scale=type2"
    assert recorded_by_sweep == [python, *sys.argv]
