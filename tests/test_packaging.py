"""What `pip install .` gives: a package that composes and trains without the checkout; and the public files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import fovea_detr
from fovea_detr.config.schema import CONF_DIR
from fovea_detr.study import snapshot
from tests.launch import ROOT

SMALL = ["experiment=tiny", "schedule.epochs=1", "data.train_images=16", "data.val_images=8"]
SCRIPTS = {"fovea-detr", "fovea-study", "fovea-collect"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this package alone, installed by pip from a copy of the checkout; no network, no other package."""
    place = tmp_path_factory.mktemp("packaging")
    checkout = snapshot.take(place, ROOT)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    pip += ["--no-build-isolation", "--no-index", "--target", str(place / "site"), str(checkout)]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place / "site"


def run(site: Path, cwd: Path, *command: str) -> str:
    """Python on the installed package, away from the checkout, to its end -> stdout."""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_installed_package_holds_every_yaml_and_every_module(site: Path) -> None:
    def files(root: Path, suffix: str) -> set[Path]:
        found = {path.relative_to(root) for path in root.rglob(f"*{suffix}") if "__pycache__" not in path.parts}
        return found - {Path("local.yaml")}  # personal

    assert files(site / "fovea_detr/conf", ".yaml") == files(CONF_DIR, ".yaml") | {
        Path("sweeps") / name for name in files(ROOT / "sweeps", ".yaml")
    }
    for package in ("fovea_detr", "analysis", "hydra_plugins"):
        for suffix in (".py", ".html", ".css", ".js", "py.typed"):
            assert files(site / package, suffix) == files(ROOT / package, suffix)


@pytest.mark.slow
def test_an_installed_package_composes_trains_and_makes_tables(site: Path, tmp_path: Path) -> None:
    code = "import fovea_detr; print(fovea_detr.__file__, fovea_detr.load_config(['sweeps=smooth', 'smooth=4']).study)"
    assert run(site, tmp_path, "-c", code) == f"{site}/fovea_detr/__init__.py smooth\n"
    assert "done: AP" in run(site, tmp_path, "-m", "fovea_detr", *SMALL)
    assert "done already: AP" in run(site, tmp_path, str(site / "bin/fovea-detr"), *SMALL)
    assert " done " in run(site, tmp_path, str(site / "bin/fovea-study"), "status", "tiny")
    assert " done " in run(site, tmp_path, str(site / "bin/fovea-collect"), "tiny", "--to", "page.html")
    dry = ["hydra/launcher=submitit_slurm", "hydra.launcher.dry_run=true"]
    assert "#SBATCH" in run(site, tmp_path, "-m", "fovea_detr", "-m", "sweeps=tiny", *dry)


def test_a_checkout_whose_zip_lost_the_link_to_conf_composes(tmp_path: Path) -> None:
    """Python's zipfile and some graphical tools unpack a symbolic link as a file with its target."""
    checkout = snapshot.take(tmp_path, ROOT)
    (checkout / "fovea_detr/conf").unlink()
    (checkout / "fovea_detr/conf").write_text("../conf")
    code = "import fovea_detr; print(fovea_detr.load_config(['dynamic_scale=type3']).dynamic_scale['name'])"
    assert run(checkout, tmp_path, "-c", code) == "type3\n"


@pytest.mark.slow
def test_an_installed_package_names_its_question_on_the_page(site: Path, tmp_path: Path) -> None:
    code = "from analysis.output.report import header; print(header('tiny')['Question'])"
    assert run(site, tmp_path, "-c", code).startswith("Does the prior")


def test_the_scripts_lead_to_functions_that_exist() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    scripts = dict(re.findall(r'^(fovea-\w+) = "(.*)"$', text, re.MULTILINE))
    assert set(scripts) == SCRIPTS
    for name, value in scripts.items():
        assert callable(metadata.EntryPoint(name, value, "console_scripts").load())


def test_version_changelog_and_citation_agree() -> None:
    newest = re.findall(r"^## \[?([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert fovea_detr.__version__.removesuffix(".dev0") == newest
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] == "Apache-2.0"
    assert [reference["title"] for reference in citation["references"]] == [
        "End-to-End Object Detection with Transformers",
        "Fast Convergence of DETR with Spatially Modulated Co-Attention",
    ]


def test_the_licence_names_the_sources_of_the_method() -> None:
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
    assert re.search(r"facebookresearch/detr.*SMCA", (ROOT / "NOTICE").read_text(), re.DOTALL)
