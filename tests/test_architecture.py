"""The rooms of the package and the direction of its imports, read from the code: see docs/architecture.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.launch import ROOT

# From the ground up: a room imports from rooms that stand before it in this list, and from itself.
ROOMS = ("errors", "types", "boxes", "config", "compose", "cli", "runs", "machine", "fovea", "model", "loss", "data")
ROOMS += (
    "evaluation",
    "training",
    "build",
    "predict",
    "export",
    "assembly",
    "experiment",
    "study",
    "__init__",
    "__main__",
)
WITHOUT_TORCH = ("runs", "study")
# What stands on the package, and may import all of it. Nothing in the package imports from here.
ABOVE = ("analysis", "benchmarks", "hydra_plugins", "tests", "run")
PROGRAM = "fovea_detr.__main__"  # run.py inside the package: registers the launchers; no module imports it
ANALYSIS = ("statistics", "reading", "tables", "output", "figures")


def files(folder: str) -> dict[str, Path]:
    """Every module of a top folder by its dotted name; a package by its own."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)] = path
    return found


def imports(path: Path, modules: set[str]) -> Iterator[str]:
    """The modules that a file imports, wherever in it: at its top, inside functions, for the type checker."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules else node.module


def arrows(folder: str) -> dict[str, set[str]]:
    modules = files(folder)
    names = set(modules) | set(files("fovea_detr"))
    return {name: set(imports(path, names)) for name, path in modules.items()}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_every_room_has_its_place() -> None:
    """A new folder or file at the package's root needs a line in ROOMS: is it really a room of its own?"""
    assert {room(module) for module in files("fovea_detr")} == set(ROOMS)


def test_imports_point_down() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, found in arrows("fovea_detr").items()
        for imported in found
        if imported.startswith("fovea_detr") and ROOMS.index(room(imported)) > ROOMS.index(room(module))
    ]
    wrong += [
        f"{module} imports {imported}"
        for module, found in arrows("fovea_detr").items()
        for imported in found
        if imported.split(".")[0] in ABOVE and module != PROGRAM
    ]
    assert not wrong


@pytest.mark.parametrize("folder", ["fovea_detr", "analysis", "hydra_plugins", "benchmarks"])
def test_no_circle_of_modules(folder: str) -> None:
    TopologicalSorter(arrows(folder)).prepare()  # raises CycleError, which names the modules


def test_imports_of_the_analysis_point_down() -> None:
    def floor(module: str) -> int:
        part = module.split(".")[1]
        return ANALYSIS.index(part) if part in ANALYSIS else len(ANALYSIS)

    wrong = [
        f"{module} imports {imported}"
        for module, found in arrows("analysis").items()
        for imported in found
        if imported.startswith("analysis.") and module != "analysis.__init__" and floor(imported) > floor(module)
    ]
    assert not wrong


def test_run_folders_and_studies_do_without_torch() -> None:
    """A sweep of hundreds of points, `status` and the table start in well under a second; torch alone takes longer."""
    modules = [module for module in files("fovea_detr") if room(module) in WITHOUT_TORCH]
    code = (
        f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_tests_mirror_the_tree() -> None:
    """Each folder of tests is a folder of the code; `golden/` holds recorded values."""
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    code = {path.name for path in (ROOT / "fovea_detr").iterdir() if path.is_dir()} | {"analysis", "benchmarks"}
    assert folders <= code
