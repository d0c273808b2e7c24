"""Every format has the same numbers, checked cell by cell against the run folders."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from analysis import collect
from fovea_detr.runs.folder import METRICS, RunFolder
from tests.analysis.made_up import write_every_kind
from tests.launch import run_well

FILES = ("results.csv", "results.md", "results.tex", "results.html", "results.json", "results.parquet")
Rows = dict[str, dict[str, str]]


def write_all(root: Path, *options: str) -> Path:
    files = [part for name in FILES for part in ("--to", str(root / "out" / name))]
    every = ["--metrics", "all", "--baseline", "dynamic_scale=type1"]
    assert collect.main(["dynamic_scale", "--runs", str(root), *options, *every, *files]) == 0
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four real runs: two of the demo's types, two seeds of each, shortened."""
    root = tmp_path_factory.mktemp("trained")
    small = ["schedule.epochs=4", "data.train_images=320", "data.val_images=60", f"data.cache={root / 'cache'}"]
    for type_, seed in (("type1", 0), ("type1", 1), ("type2", 0), ("type2", 1)):
        point = [f"dynamic_scale={type_}", f"seed={seed}"]
        run_well("experiment=tiny", "study=dynamic_scale", f"runs={root}", *small, *point)
    return write_all(root)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_every_kind(root / "dynamic_scale")
    return write_all(root, "--where", "mixture=none")


def expected(root: Path) -> Rows:
    """Mean ± std and difference of every metric of the finished rows, computed from result.json."""
    scores: dict[str, dict[str, list[float]]] = {}
    for path in sorted((root / "dynamic_scale").glob("*/result.json")):
        scale = re.findall(r"dynamic_scale=(\w+)", path.parent.name)[0]
        for name in METRICS:
            last = (RunFolder(path.parent).result() or {})["last"]
            scores.setdefault(scale, {}).setdefault(name, []).append(last[name])
    rows: Rows = {}
    for scale, by_name in scores.items():
        rows[scale] = {"n": str(len(by_name["AP"]))}
        for name, found in by_name.items():
            mean, base = statistics.fmean(found), statistics.fmean(scores["type1"][name])
            rows[scale] |= {name: f"{100 * mean:.1f} ± {100 * statistics.stdev(found):.1f}"}
            if scale != "type1":
                rows[scale] |= {f"Δ{name}": f"{100 * (mean - base):+.2f}"}
    return rows


class Cells(HTMLParser):
    """The rows of the first table of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "table":
            self._inside = "sortable" in str(attrs)
        if self._inside and tag == "tr":
            self.rows.append([])
        if self._inside and tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self._inside and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "table"


def by_first_cell(lines: list[list[str]]) -> Rows:
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[1:]}


def read_html(text: str) -> Rows:
    parser = Cells()
    parser.feed(text)
    return by_first_cell(parser.rows)


def read_markdown(text: str) -> Rows:
    lines = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
    return by_first_cell([[cell.replace("\\", "") for cell in line] for line in cells])


def read_latex(text: str) -> Rows:
    lines = [line.removesuffix(r"\\").split("&") for line in text.splitlines() if line.endswith(r"\\")]
    return by_first_cell([[plain(cell.strip()) for cell in line] for line in lines])


def plain(cell: str) -> str:
    cell = re.sub(r" \{\\scriptsize.*\}$", "", cell)  # the small grey difference
    cell = re.sub(r"\\textbf\{(.*)\}", r"\1", cell)
    for latex, text in ((r"$\pm$", "±"), (r"$\Delta$", "Δ"), ("$-$", "-"), ("\\", "")):
        cell = cell.replace(latex, text)
    return cell


def from_data(records: list[dict[str, object]]) -> Rows:
    """Mean and std, fractions of full precision in data files, in the printed digits."""
    rows: Rows = {}
    for record in records:
        row = rows[str(record["dynamic_scale"])] = {"n": f"{float(str(record['n'] or 'nan')):.0f}"}
        for name in METRICS:
            if record.get(f"{name}_std") not in (None, ""):
                mean, std = (100 * float(str(record[f"{name}{end}"])) for end in ("", "_std"))
                row[name] = f"{mean:.1f} ± {std:.1f}"
            if record.get(f"{name}_difference") not in (None, ""):
                row[f"Δ{name}"] = f"{100 * float(str(record[f'{name}_difference'])):+.2f}"
    return rows


def read(path: Path) -> Rows:
    text = "" if path.suffix == ".parquet" else path.read_text()
    if path.suffix == ".parquet":
        frame = pd.read_parquet(path).astype(object)
        return from_data(frame.where(frame.notna(), None).to_dict("records"))  # pyright: ignore[reportArgumentType]
    if path.suffix == ".csv":
        return from_data(list(csv.DictReader(io.StringIO(text))))  # pyright: ignore[reportArgumentType]
    if path.suffix == ".json":
        return from_data(json.loads(text)["rows"])
    return {".html": read_html, ".md": read_markdown, ".tex": read_latex}[path.suffix](text)


@pytest.mark.parametrize("file", FILES)
def test_every_cell_equals_the_run_folders(written, file):
    rows = read(written / "out" / file)
    for scale, cells in expected(written).items():
        assert {name: rows[scale][name].partition(" [")[0] for name in cells if name in rows[scale]} == {
            name: cell for name, cell in cells.items() if name in rows[scale]
        }
        assert len(rows[scale].keys() & cells.keys()) >= (len(METRICS) if file.endswith("tex") else len(cells))
    assert file.endswith("tex") or rows["type4"]["n"] == "1"


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_every_cell_of_real_runs(trained, file):
    rows, wanted = read(trained / "out" / file), expected(trained)
    assert wanted.keys() == {"type1", "type2"}
    for scale, cells in wanted.items():
        found = {name: rows[scale][name].partition(" [")[0] for name in cells.keys() & rows[scale].keys()}
        assert found.items() <= cells.items()
        assert len(found) >= len(METRICS)


def test_a_csv_has_fractions_in_full_precision(written):
    with (written / "out" / "results.csv").open() as file:
        row = next(line for line in csv.DictReader(file) if line["dynamic_scale"] == "type3")
    runs = sorted((written / "dynamic_scale").glob("*type3*/result.json"))
    found = [(RunFolder(path.parent).result() or {})["last"]["AP"] for path in runs]
    assert float(row["AP"]) == statistics.fmean(found)
    assert float(row["AP_std"]) == statistics.stdev(found)
    assert row["AP_published"] == "0.41"
    assert row["notes"] == "published: SMCA README"


def test_the_same_cells_are_bold_in_every_format(written):
    """Which ones: test_table.py."""
    best = max(expected(written).values(), key=lambda row: row["AP"])["AP"]
    texts = {file: (written / "out" / f"results.{file}").read_text() for file in ("tex", "md", "html")}
    assert r"\textbf{" + best.replace("±", r"$\pm$") + "}" in texts["tex"]
    assert f"**{best}**" in texts["md"]
    counts = {
        texts["tex"].count(r"\textbf"),
        texts["md"].count("**") // 2,
        len(re.findall('class="number best', texts["html"])),
    }
    assert len(counts) == 1
    assert counts.pop() > len(METRICS)


def test_latex_is_booktabs_and_escapes_special_characters(written, write, tmp_path):
    text = (written / "out" / "results.tex").read_text()
    assert [word for word in (r"\toprule", r"\midrule", r"\bottomrule") if text.count(word) == 1] == [
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
    ]
    widths = {line.count("&") for line in text.splitlines() if line.endswith(r"\\")}
    assert len(widths) == 1
    write("seed=0", result=None).write_state("failed", reason="50% of {a_b} & #1 \\ ~^ $")
    assert collect.main(["--runs", str(tmp_path), "--columns", "state,AP", "--to", str(tmp_path / "t.tex")]) == 0
    wanted = r"failed: 50\% of \{a\_b\} \& \#1 \textbackslash{} \textasciitilde{}\textasciicircum{} \$"
    assert wanted in (tmp_path / "t.tex").read_text()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs TeX: apt-get install texlive-latex-recommended")
@pytest.mark.parametrize("options", [[], ["--columns", "dynamic_scale,AP,AP50,AP75,state"], ["--siunitx"]])
def test_latex_fits_a_column_of_two(tmp_path, options):
    write_every_kind(tmp_path / "dynamic_scale")
    every = ["--metrics", "AP,AP50,AP75,AP_small,AP_medium,AP_large", "--baseline", "dynamic_scale=type1", *options]
    assert collect.main(["--runs", str(tmp_path), *every, "--to", str(tmp_path / "t.tex")]) == 0
    packages = (tmp_path / "t.tex").read_text().partition("\n")[0].removeprefix("% ")
    assert ("siunitx" in packages) == (r"\num{" in (tmp_path / "t.tex").read_text()) == ("--siunitx" in options)
    paper = rf"\documentclass[twocolumn]{{article}}{packages}\begin{{document}}\noindent\input{{t}}\end{{document}}"
    (tmp_path / "paper.tex").write_text(paper)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout
    assert "Overfull" not in done.stdout
    assert "failed" not in (tmp_path / "t.tex").read_text().partition(r"\end{tabular}")[0] or "state" in str(options)


def test_markup_of_a_reason_stays_text(write, tmp_path):
    write("seed=0", result=None).write_state("failed", reason="<script>alert(1)</script> a|b")
    files = [tmp_path / "t.html", tmp_path / "t.md"]
    assert collect.main(["--runs", str(tmp_path), *(part for file in files for part in ("--to", str(file)))]) == 0
    assert "<script>alert" not in files[0].read_text()
    assert r"\<script>alert(1)\</script> a\|b" in files[1].read_text()


def test_parquet_without_its_package_is_one_line(write, tmp_path, monkeypatch, capsys):
    write("seed=0")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert collect.main(["--runs", str(tmp_path), "--to", str(tmp_path / "t.parquet")]) == 1
    assert capsys.readouterr().err == "error: parquet needs the package pyarrow: pip install 'fovea-detr[parquet]'\n"
    assert not (tmp_path / "t.parquet").exists()
