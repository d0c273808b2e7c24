"""The command line as a user meets it: exit codes, one line for a mistake, help with every value, sweeps by name."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from omegaconf import OmegaConf

from fovea_detr import cli
from fovea_detr.compose import load_config
from fovea_detr.config import overrides
from fovea_detr.config.schema import AXES, CONF_DIR, leaves
from fovea_detr.errors import ConfigError, DataError
from fovea_detr.runs.folder import RunFolder
from tests import launch

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
        ("schedule=3", "schedule=3: there is no such value; choose 50ep"),
        ("kernel=null", "kernel=null: there is no such value; choose gaussian"),
        ("mixture=none,head", "mixture=none,head: several values make a sweep: add -m; see"),
        ("train.freeze=backbone,encoder", "add -m; several parts at once: train.freeze=backbone+encoder; see"),
        ("fovea=false", "fovea is not a single value; did you mean model.fovea?"),
        ("--lr 1e-4", "--lr: there is no such option; did you mean schedule.lr? overrides are KEY=VALUE"),
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
    for smooth, score in (("4", "4.0"), ("8", "8.0"), ("16", "16.0")):
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
def test_quote_choices(argument, rewritten):
    assert overrides.quote_choices(argument) == rewritten


@pytest.mark.parametrize("group", GROUPS)
def test_numbers_and_constants_are_quoted_for_every_group(group):
    assert overrides.quote_choices(f"{group}=3,4.5") == f"{group}='3','4.5'"
    assert overrides.quote_choices(f"{group}=null") == f"{group}='null'"
    assert overrides.quote_choices(f"{group}=true") == f"{group}='true'"


@pytest.mark.parametrize(
    ("argument", "rewritten"),
    [
        ("smooth=glob(*)", "smooth='4','8','16'"),
        ("smooth=glob([4,8])", "smooth='4','8'"),
        ("smooth=choice(4,8)", "smooth='4','8'"),
        ("smooth=range(4,9,4)", "smooth='4','8'"),
        ("smooth=range(4.0,9.0,4.0)", "smooth='4','8'"),
        ("smooth=sort(16,4,reverse=true)", "smooth='16','4'"),
    ],
)
def test_functions_of_a_numeric_group_are_expanded(argument: str, rewritten: str) -> None:
    assert overrides.quote_choices(argument) == rewritten


NAMES = [
    "été",
    "a#b",
    "a&b",
    "my data",
    " x",
    "a=b",
    "a,b",
    "it's",
    'say "x"',
    "f(x)",
    "a:b",
    "[x]",
    "{a: 1}",
    "100%",
    "~a",
]
NAMES += [
    "back\\slash",
    "end\\",
    "'quoted'",
    "2024",
    "1e3",
    "true",
    "日本",
    "a;b",
    "$HOME",
    "glob(*)",
    "dynamic_scale=type3,seed=1",
]


def read_by_hydra(override: str) -> list[Any]:
    """The override as typed, through a sweep, -> the values that the points get."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    ((*points,),) = BasicSweeper.split_arguments(parser.parse_overrides(overrides.rewrite([override])), None)
    return [parser.parse_overrides(list(point))[0].value() for point in points]


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_read_as_typed(tmp_path: Path, name: str, exists: bool) -> None:
    path = tmp_path / name
    if exists:
        path.mkdir()
    assert load_config([f"data.root={path}"]).data.root == str(path)
    assert read_by_hydra(f"data.root={path}") == [str(path)]


def test_a_relative_path_that_looks_like_a_number_is_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("1e3", "2024", "true", "~x"):
        assert load_config([f"runs={name}"]).runs == name


def test_the_home_folder_is_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/zoé")
    assert load_config(["data.root=~/coco", "runs=~/my runs"]).data.root == "/home/zoé/coco"
    assert load_config(["data.root=~/coco", "runs=~/my runs"]).runs == "/home/zoé/my runs"


def test_a_list_of_existing_paths_is_a_sweep(tmp_path: Path) -> None:
    for name in ("a", "b,c", "d e"):
        (tmp_path / name).touch()
    found = read_by_hydra(f"weights={tmp_path}/a,{tmp_path}/b,c,null,{tmp_path}/d e")
    assert found == [f"{tmp_path}/a", f"{tmp_path}/b,c", None, f"{tmp_path}/d e"]
    assert read_by_hydra("model.backbone_weights=imagenet,none") == ["imagenet", "none"]
    assert read_by_hydra(f"weights={tmp_path}/a,{tmp_path}/z") == [f"{tmp_path}/a,{tmp_path}/z"]


@pytest.mark.parametrize("typed", ["data.root=${oc.env:HOME}/coco", "data.root='/x/y'", "data.root=null", "data.root="])
def test_quotes_interpolations_and_null_are_left_to_hydra(typed: str) -> None:
    assert overrides.rewrite([typed]) == [typed]


# ---- slips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["hydra/launcher=submitit_slurm"],
            "hydra/launcher=submitit_slurm belongs to a sweep; add -m: python run.py -m",
        ),
        (["seed=1", "hydra.launcher.dry_run=true"], "run.py -m seed=1 hydra.launcher.dry_run=true"),
        (["sweeps=mixture"], "sweeps=mixture belongs to a sweep; add -m"),
        (["hydra/sweeper=optuna"], "add -m"),
        (["-m", "dynamic_scale=type1,", "type2"], "dynamic_scale=type1, type2: spaces split this into 2 arguments; "),
        (["-m", "smooth=4,", "8,", "16", "seed=1"], "write smooth=4,8,16"),
        (["-m", "smooth=4", ",8"], "write smooth=4,8"),
        (["smooth=", "4"], "write smooth=4"),
        (["smooth=4,"], "there is no value after the last comma"),
        (["type2"], "type2: not of the form KEY=VALUE"),
        (["-m", "smooth='4,8"], "a quote is not closed; add the second '"),
        (['study="a'], 'a quote is not closed; add the second "'),
        (["data.root='/my data"], "a quote is not closed"),
        (["study=café"], "Hydra reads 'é' only in quotes; write 'study=\"café\"'"),
        (["study=a#b"], "Hydra reads '#' only in quotes"),
        (["smooth=glob(5*)", "-m"], "smooth=glob(5*): no value matches; choose 4, 8, 16"),
        (["smooth=interval(4,8)", "-m"], "name the values, as in smooth=4,8"),
        (["--multi-run", "smooth=4,8"], "--multi-run: there is no such option"),
        (["--multirun=true", "smooth=4,8"], "--multirun"),
        (["-multirun", "smooth=4,8"], "ignored explicit argument"),
        (["--cfg", "jobs"], "invalid choice: 'jobs'"),
        (["-m", "seed=0,1", "seed=2"], "name a key once"),
    ],
)
def test_a_slip_is_refused_in_one_line(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        cli.for_hydra(arguments)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["-m", "smooth=4,8", "seed=1"], ["-m", "smooth='4','8'", "seed=1"]),
        (["smooth=4,8", "-m", "seed=1"], ["smooth='4','8'", "seed=1", "-m"]),
        (["smooth=4", "--multirun"], ["smooth='4'", "--multirun"]),
        (["seed=1", "--cfg", "job", "smooth=4"], ["seed=1", "smooth='4'", "--cfg", "job"]),
        (["--cfg", "job", "sweeps=smooth"], ["--cfg", "job", "sweeps=smooth"]),
        (["hydra.mode=MULTIRUN", "sweeps=smooth"], ["hydra.mode=MULTIRUN", "sweeps=smooth"]),
        (["-m", "~sweeps", "+hydra.launcher.wait=true"], ["-m", "~sweeps", "+hydra.launcher.wait=true"]),
    ],
)
def test_options_may_stand_between_overrides(typed: list[str], read: list[str]) -> None:
    assert cli.for_hydra(typed) == read


def test_m_after_an_override_is_a_sweep(tmp_path: Path) -> None:
    done = run("smooth=choice(4,8)", "-m", "model.heads=7", f"runs={tmp_path}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: point model.heads=7,smooth=4: ")


@pytest.mark.slow
def test_torchrun_prints_an_error_of_all_ranks_once() -> None:
    done = launch.run("sead=1", ranks=3)
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        "error: unknown key 'sead' on the command line; did you mean seed? see `python run.py --help`"
    ]


# ---- errors ------------------------------------------------------------------------------------------------------


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


def test_what_torchs_import_creates_is_never_searched_for_garbage() -> None:
    """In a new process; the search is on again afterwards, also after an error, and later imports freeze nothing."""
    code = """if True:
        import gc
        from fovea_detr.cli import importing_torch
        with importing_torch():
            assert not gc.isenabled()
            from fovea_detr import experiment
        frozen = gc.get_freeze_count()
        assert gc.isenabled() and frozen > 100_000, frozen
        try:
            with importing_torch():
                kept = [[] for _ in range(10)]
                raise ImportError
        except ImportError:
            assert gc.isenabled() and gc.get_freeze_count() <= frozen
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=launch.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    ["fovea_detr.data", "fovea_detr.evaluation", "fovea_detr.export", "fovea_detr.predict", "fovea_detr.study"],
)
def test_a_wrong_option_of_a_command_is_one_line(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--bogus"], cwd=launch.ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"; see `python -m {module} --help`")
