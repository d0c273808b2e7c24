"""The command line as a user meets it: exit codes, one line for a mistake, help with every value, sweeps by name."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from omegaconf import OmegaConf

from fovea_detr import cli
from fovea_detr.compose import load_config
from fovea_detr.config import overrides
from fovea_detr.config.schema import AXES, CONF_DIR, leaves
from fovea_detr.errors import DataError
from fovea_detr.runs.folder import RunFolder

GROUPS = [*AXES, "smooth", "model", "schedule", "data", "cluster"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python run.py ...` to its end, from the repository root."""
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, str(CONF_DIR.parent / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=CONF_DIR.parent, env=surroundings, timeout=60)


# ---- run.py ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("nothing=1", "unknown key 'nothing'"),
        ("smooth=5", "choose 4, 8, 16"),
        ("model.heads=7", "does not divide"),
        ("-m smooth=4,8 mode=eval weights=nowhere.pth", "there is no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, arguments, words):
    done = run(*arguments.split(), f"runs={tmp_path}")
    assert done.returncode == 2
    assert words in done.stderr
    assert re.fullmatch(r"error: .*\n", done.stderr)
    assert "Traceback" not in done.stdout


def test_the_whole_traceback_is_one_variable_away():
    done = run("nothing=1", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.fixture(scope="module")
def help_by_group() -> dict[str, str]:
    """The part of --help about each axis."""
    done = run("--help")
    assert done.returncode == 0, done.stderr
    axes = done.stdout[done.stdout.index("AXES") : done.stdout.index("VERBS")]
    parts = re.split(r"^ {2}(\w+)", axes, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("group", GROUPS)
def test_help_names_every_value_of_an_axis_and_the_default(help_by_group, group):
    values = {path.stem for path in (CONF_DIR / group).glob("*.yaml")}
    assert values <= set(re.findall(r"\w+", help_by_group[group]))
    if len(values) > 1:
        root = OmegaConf.load(CONF_DIR / "config.yaml")
        (default,) = [entry[group] for entry in OmegaConf.select(root, "defaults") if group in entry]
        assert re.search(rf"\b{default}\b[^,\n]*\[default\]", help_by_group[group])


def test_no_group_is_missing_from_help(help_by_group):
    groups = {path.name for path in CONF_DIR.iterdir() if path.is_dir() and path.name != "hydra"}
    assert groups - {"sweeps"} == {*GROUPS, "experiment"}
    assert set(help_by_group) == groups | {"sweeps"}


def test_cfg_shows_every_key_with_its_value():
    done = run("--cfg", "job", "smooth=4", "fovea.smooth=6.5")
    assert done.returncode == 0, done.stderr
    shown = OmegaConf.to_container(OmegaConf.create(done.stdout), resolve=True)
    everything = leaves(load_config(["fovea.smooth=6.5"]))
    assert leaves(shown).items() <= everything.items()
    unsaid = everything.keys() - leaves(shown).keys()
    assert {key.partition(".")[0] for key in unsaid} <= {"data"}, "a data set shows the keys that it uses"


def test_a_sweep_by_name_launches_its_points_and_one_that_is_done_is_shown(tmp_path):
    for smooth in ("4", "8", "16"):
        folder = RunFolder(tmp_path / "smooth" / f"smooth={smooth}")
        folder.write_config(OmegaConf.to_yaml(OmegaConf.structured(load_config([f"smooth={smooth}"]))))
        result = {"last": {"AP": float(smooth) / 100}, "epochs": 50, "minutes": 3.0, "inference_seconds": 0.04}
        folder.write_result(result)
    done = run("-m", "sweeps=smooth", f"runs={tmp_path}")
    assert done.returncode == 0, done.stderr
    for smooth, score in (("4", "0.040"), ("8", "0.080"), ("16", "0.160")):
        assert f"smooth={smooth}: done already: AP {score}" in done.stdout
    assert done.stdout.count("done already") == 3


# ---- what is rewritten, and what is said -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "rewritten"),
    [
        ("smooth=4", "smooth='4'"),
        ("smooth=4,8,16", "smooth='4','8','16'"),
        ("smooth=6.5", "smooth='6.5'"),
        ("smooth='4','8'", "smooth='4','8'"),
        ("fovea.smooth=4,8", "fovea.smooth=4,8"),
        ("smooth=wide", "smooth=wide"),
        ("seed=1,2", "seed=1,2"),
        ("-m", "-m"),
    ],
)
def test_quote_numeric_choices(argument, rewritten):
    assert overrides.quote_numeric_choices(argument) == rewritten


def test_every_group_with_numeric_values_is_quoted():
    folders = [path for path in CONF_DIR.iterdir() if path.is_dir()]
    numeric = {folder.name for folder in folders if any(path.stem.isdigit() for path in folder.glob("*.yaml"))}
    assert numeric == set(overrides.NUMERIC_GROUPS)


def test_a_path_in_a_run_folder_is_quoted_where_it_exists(tmp_path: Path):
    path = tmp_path / "dynamic_scale=type3,seed=1.pt"
    assert overrides.rewrite([f"weights={path}"]) == [f"weights={path}"]
    path.touch()
    assert overrides.rewrite([f"weights={path}", "seed=1,2"]) == [f"weights='{path}'", "seed=1,2"]
    assert load_config([f"weights={path}"]).weights == str(path)


def test_a_users_mistake_exits_with_2_and_a_bug_keeps_its_traceback(capsys):
    with pytest.raises(SystemExit) as ended, cli.one_line_errors():
        raise DataError("data.root is not set")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: data.root is not set\n"
    with pytest.raises(KeyError), cli.one_line_errors():
        raise KeyError("a bug")


def test_an_error_is_one_write_so_that_those_of_two_ranks_stay_two_lines(monkeypatch):
    """torchrun and submitit start Python with -u, where every write goes out at once."""
    writes: list[bytes] = []

    class Pipe(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data) -> int:
            writes.append(bytes(data))
            return len(data)

    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(cast(BinaryIO, Pipe()), write_through=True))
    with pytest.raises(SystemExit), cli.one_line_errors():
        raise DataError("data.root is not set")
    assert writes == [b"error: data.root is not set\n"]
