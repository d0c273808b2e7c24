"""The page in a real browser: a silent console, no requests, sorting, and no overflow."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

from analysis import collect
from analysis.output import commands, report
from analysis.reading.runs import read_run
from fovea_detr.compose import load_config
from fovea_detr.runs.folder import RunFolder
from fovea_detr.study.manifest import Point, Submission
from tests.analysis.browser import CHROMIUM, Page, browser
from tests.analysis.made_up import write_every_kind

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_every_kind(root / "dynamic_scale")
    path = root / "report.html"
    assert collect.main(["--runs", str(root), "--baseline", "dynamic_scale=type1", "--to", str(path)]) == 0
    return path


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


@needs_chromium
@pytest.mark.parametrize("width", [380, 1400])
def test_a_click_sorts_and_a_second_click_reverses(page_file, tab, width):
    tab.open(page_file, width)
    column = 'h => h.textContent.trim() === "AP"'
    heads = '[...document.querySelectorAll("table.sortable th")]'
    cells = f'{heads}.findIndex({column}), "AP"'
    ask = f"""[...document.querySelectorAll("table.sortable tbody tr")].map(r => r.cells[({cells.split(",")[0]})])
        .map(c => c.dataset.value)"""
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
    assert first == ["type1", "type2", "type2", "type3", "type4", "-"]
    assert tab.ask('document.querySelectorAll("table.sortable th[aria-sort]").length') == 1
    assert tab.complaints == []


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
