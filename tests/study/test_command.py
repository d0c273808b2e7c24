"""Sweeps up to sbatch: errors, the output of a dry run, the points of `sweeps=published`. Needs no SLURM."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fovea_detr.compose import load_config
from fovea_detr.config.schema import CONF_DIR, Config

GOLDEN = Path(__file__).parent / "golden"
ROOT = CONF_DIR.parent


def sweep(runs: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run.py"), "-m", "hydra/launcher=submitit_slurm", f"runs={runs}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)


def no_sbatch(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """An sbatch that creates a file if it is called."""
    (folder / "bin").mkdir()
    (folder / "bin/sbatch").write_text(f"#!/bin/sh\ntouch {folder}/called\nexit 1\n")
    (folder / "bin/sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    return folder / "called"


def plain(text: str, runs: Path) -> str:
    return text.replace(str(runs), "RUNS").replace(sys.executable, "PYTHON").replace(str(ROOT), "CODE")


def test_dry_run_is_the_golden_record(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    site = ["cluster.account=vision", "cluster.mail=me@site", "cluster.mem_gb=120", "cluster.setup=[module load cuda]"]
    site += ["+cluster.extra.exclude=node7", "data.root=/data/coco"]
    done = sweep(runs, "dynamic_scale=type1,type2,type3,type4", *site, "hydra.launcher.dry_run=true")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert not runs.exists(), "a dry run writes nothing"
    golden = GOLDEN / "dry_run.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(plain(done.stdout, runs))
    assert plain(done.stdout, runs) == golden.read_text()


def test_8_gpus_are_one_override(tmp_path: Path) -> None:
    done = sweep(tmp_path, "smooth=4,8", "data.root=/x", "cluster.gpus=8", "hydra.launcher.dry_run=true")
    assert {"--gres=gpu:8", "--ntasks-per-node=8", "--cpus-per-task=4"} <= set(done.stdout.split())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["fovea.smooth=1,2,3,4,5,-6,7,8,9,10"], "point data.root=/x,fovea.smooth=-6"),
        (["model.heads=8,4,7"], "point data.root=/x,model.heads=7"),
        (["dynamic_scale=type1,type9"], "dynamic_scale=type9"),
        (["cluster.gpus=4,8"], "would share the folder"),
    ],
)
def test_one_bad_point_refuses_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], words: str
) -> None:
    called = no_sbatch(monkeypatch, tmp_path)
    done = sweep(tmp_path / "runs", "data.root=/x", *overrides)
    assert done.returncode == 2
    assert words.replace("data.root=/x,", "") in done.stderr
    assert re.fullmatch(r"error: .*nothing was started\n", done.stderr)
    assert not called.exists()
    assert not (tmp_path / "runs/default/manifest.jsonl").exists()


def test_an_error_of_sbatch_is_one_line_and_the_reason_of_the_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_sbatch(monkeypatch, tmp_path)
    for name in ("squeue", "sacct"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    done = sweep(tmp_path / "runs", "experiment=tiny")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: nothing was submitted: sbatch: exit code 1\n", done.stderr)
    assert "not submitted" in (tmp_path / "runs/tiny/experiment=tiny/state.json").read_text()


PUBLISHED = {  # experiment: dynamic_scale, mixture, smooth, epochs, drop
    "focal_300_type1_no_scale": ("Type1", "Everywhere", 8, 50, 40),
    "focal_300_type3_xy_scale": ("Type3", "Everywhere", 8, 50, 40),
    "focal_300_type4_covarince_scale": ("Type4", "Everywhere", 8, 50, 40),
    "focal_300_type2_scale_head_mixture": ("Type2", "HalfTheHeads", 8, 50, 40),
    "focal_300_type2_scale_query_mixture": ("Type2", "HalfTheQueries", 8, 50, 40),
    "focal_300_type2_single_scale_smooth_4": ("Type2", "Everywhere", 4, 50, 40),
    "focal_300_type2_single_scale_smooth_16": ("Type2", "Everywhere", 16, 50, 40),
    "focal_300_type2_scale_query_mixture_150": ("Type2", "HalfTheQueries", 8, 150, 100),
    "focal_300_type2_scale_query_mixture_500": ("Type2", "HalfTheQueries", 8, 500, 400),
    "focal_300_type2_single_scale_smooth_8": ("Type2", "Everywhere", 8, 50, 40),
    "focal_300_no_fovea": (None, "Everywhere", 8, 50, 40),
}


def test_published_expands_to_the_nine_commands_and_two_controls(tmp_path: Path) -> None:
    done = sweep(tmp_path, "sweeps=published", "data.root=/x", "hydra.launcher.dry_run=true")
    assert re.findall(r"^experiment=(\S+) +new", done.stdout, re.MULTILINE) == list(PUBLISHED)
    assert "4400 GPU-hours by schedule" in done.stdout
    assert {"--gres=gpu:4", "--cpus-per-task=8", "--partition=vc_research"} <= set(done.stdout.split())


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_published_flags(experiment: str) -> None:
    config = load_config([f"experiment={experiment}"])
    scale, _, smooth, epochs, drop = PUBLISHED[experiment]
    assert (config.fovea.smooth, config.schedule.epochs, config.schedule.lr_drop) == (smooth, epochs, drop)
    assert (config.schedule.batch_size, config.cluster.gpus, config.cluster.cpus) == (4, 4, 32)
    assert (config.model.num_queries, config.model.loss, config.cluster.partition) == (300, "focal", "vc_research")
    assert config.model.fovea == (scale is not None)
    assert axes(config) == PUBLISHED[experiment][:2]


def axes(config: Config) -> tuple[str | None, str]:
    scale = config.dynamic_scale["_target_"].rpartition(".")[2] if config.model.fovea else None
    return scale, config.mixture["_target_"].rpartition(".")[2]
