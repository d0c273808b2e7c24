"""`python run.py -m`: all points are checked before the first one starts; what each point and the sweeper are given."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, read_write

from fovea_detr import cli
from fovea_detr.__main__ import run_point
from fovea_detr.compose import load_config
from fovea_detr.config.schema import CONF_DIR
from fovea_detr.errors import ConfigError, UserError
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.stored import config_text
from fovea_detr.study.manifest import Point
from hydra_plugins.fovea_slurm import launcher
from hydra_plugins.fovea_slurm.config import register
from tests.test_cli import run


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("model.heads=8,7", "error: point model.heads=7: "),
        ("fovea.smooth=4,8,-6", "error: point fovea.smooth=-6: "),
        ("dynamic_scale=type1,type9", "error: point dynamic_scale=type9: "),
        (
            "cluster.gpus=4,8",
            "error: two points of this sweep, cluster.gpus=4 and cluster.gpus=8, would share ",
        ),
    ],
)
def test_a_wrong_point_is_named_before_the_first_one_starts(tmp_path: Path, overrides: str, words: str) -> None:
    done = run("-m", overrides, f"runs={tmp_path / 'runs'}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(words)
    assert re.fullmatch(r"error: .*nothing was started\n", done.stderr)
    assert not list(tmp_path.glob("runs/*/*/")), "no point has a folder"


def sweep(monkeypatch: pytest.MonkeyPatch, runs: Path, *overrides: str) -> list[tuple[int, float]]:
    """`-m` with another task than a run -> its calls: the number of the job, and the value of the swept axis."""
    calls: list[tuple[int, float]] = []

    def task(composed: DictConfig) -> float:
        calls.append((HydraConfig.get().job.num, composed.fovea.smooth))
        return composed.fovea.smooth

    register()
    monkeypatch.setattr("sys.argv", ["run.py", "-m", f"runs={runs}", *overrides])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")(task)()
    return calls


def test_points_run_in_their_order_with_their_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep(monkeypatch, tmp_path, "fovea.smooth=4,6.5") == [(0, 4.0), (1, 6.5)]


def test_no_task_runs_if_the_last_point_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"point fovea\.smooth=-6"):
        sweep(monkeypatch, tmp_path, "fovea.smooth=4,-6")


def test_what_hydra_writes_is_for_the_group_what_the_folder_around_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o2775)
    before = os.umask(0o022)
    try:
        sweep(monkeypatch, tmp_path / "runs", "fovea.smooth=4,6.5")
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o7777) for path in (tmp_path / "runs").rglob("*")}
    assert modes == {"default": "0o2775", "multirun.yaml": "0o664"}


@pytest.mark.parametrize("words", [[], ["-m", "seed=1,2"], ["-m", "seed=1,2", "hydra/launcher=submitit_local"]])
def test_a_runs_folder_that_cannot_be_made_is_one_line(words: list[str]) -> None:
    done = run(*words, "experiment=tiny", "device=cpu", "runs=/proc/runs")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: /proc/runs/tiny.*: cannot write there \(.*\); choose runs=FOLDER\n", done.stderr)


# ---- what a sweeper gets back ------------------------------------------------------------------------------------

SCORES = {"4": 0.25, "8": 0.375}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """runs/ with two points that are done."""
    for smooth, score in SCORES.items():
        folder = RunFolder(tmp_path / "default" / f"smooth={smooth}")
        folder.write_config(config_text(load_config([f"smooth={smooth}"])))
        folder.write_result({"last": {"AP": score}, "epochs": 50, "minutes": 3.0, "inference_seconds": 0.04})
    return tmp_path


def returned(monkeypatch: pytest.MonkeyPatch, runs: Path, *overrides: str) -> list[Any]:
    """What the points smooth=4 and smooth=8 return to Hydra's sweeper."""
    register()
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # Hydra has loaded it once more

    found: list[Any] = []
    hydras = BasicSweeper.sweep

    def sweep_and_read(self: BasicSweeper, arguments: list[str]) -> None:
        found.extend(result.return_value for batch in hydras(self, arguments) for result in batch)

    monkeypatch.setattr(BasicSweeper, "sweep", sweep_and_read)
    monkeypatch.setattr("sys.argv", ["run.py", "-m", "smooth=4,8", f"runs={runs}", *overrides])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    cli.run_cleanly(run_point)
    return found


def test_a_point_returns_its_last_ap_to_the_sweeper(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert returned(monkeypatch, finished) == list(SCORES.values())


def test_a_launcher_that_waits_returns_the_aps(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = ["hydra/launcher=submitit_local", "hydra.launcher.wait=true", "data.root=/data/coco"]
    assert returned(monkeypatch, finished, *local) == list(SCORES.values())


def test_a_launcher_that_does_not_wait_is_refused_with_such_a_sweeper() -> None:
    optuna = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
    config = OmegaConf.create({"hydra": {"sweeper": {"_target_": optuna}}})
    launcher.refuse_sweeper_without_results(config, waits=True)
    with pytest.raises(ConfigError, match=r"^OptunaSweeper needs each point's result: add hydra\.launcher\.wait=true$"):
        launcher.refuse_sweeper_without_results(config, waits=False)


def test_a_dry_run_has_no_results_for_such_a_sweeper() -> None:
    config = OmegaConf.create({"hydra": {"sweeper": {"_target_": "hydra_plugins.x.OptunaSweeper"}}})
    with pytest.raises(ConfigError, match="needs each point's result: a dry run has none: leave it out"):
        launcher.refuse_sweeper_without_results(config, waits=True, dry_run=True)


def waiting(monkeypatch: pytest.MonkeyPatch, sweeper: str, points: list[Point]) -> list[Any]:
    """What a launcher that waits returns for points that have ended."""
    monkeypatch.setattr("fovea_detr.study.launch.launch", lambda *_, **__: [])
    monkeypatch.setattr("fovea_detr.study.status.until_ended", lambda *_: None)
    queue = launcher.FoveaLocalLauncher(wait=True, dry_run=False)
    queue.config = OmegaConf.create({"hydra": {"sweeper": {"_target_": sweeper}}})
    return list(queue._results(points))


def test_a_failed_point_is_a_failed_trial_of_optuna_and_the_end_of_a_plain_sweep(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config([f"runs={finished}"])
    points = [Point(name, config, {}) for name in ("smooth=4", "smooth=16")]
    done, failed = waiting(monkeypatch, "hydra_plugins.x.OptunaSweeper", points)
    assert done.return_value == SCORES["4"]
    with pytest.raises(UserError, match="point smooth=16 has no result"):
        _ = failed.return_value
    with pytest.raises(SystemExit, match="1"):
        waiting(monkeypatch, "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", points)


def test_a_point_that_a_sweeper_of_trials_chooses_twice_runs_once_and_answers_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna with n_jobs > 1 does; in a plain sweep two equal points are refused."""
    scores = {"fovea.smooth=4.0": 0.25, "fovea.smooth=6.0": 0.375}
    for name, score in scores.items():
        folder = RunFolder(tmp_path / "default" / name)
        folder.write_config(config_text(load_config([name])))
        folder.write_result({"last": {"AP": score}, "epochs": 50, "minutes": 3.0, "inference_seconds": 0.04})
    started: list[str] = []
    monkeypatch.setattr("fovea_detr.study.launch.launch", lambda *_: [])
    monkeypatch.setattr("fovea_detr.study.status.until_ended", lambda found: started.extend(p.name for p in found))
    register()
    typed = [f"runs={tmp_path}", "data.root=/data/coco", "hydra/launcher=submitit_local"]
    first, second = ([*typed, name] for name in scores)
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        queue = launcher.FoveaLocalLauncher(wait=True, dry_run=False)
        queue.config = hydra.compose("config", typed, return_hydra_config=True)
        queue.loader = GlobalHydra.instance().config_loader()
        with pytest.raises(ConfigError, match=r"^two points of this sweep, .* would share"):
            queue.launch([first, second, first], 0)
        with read_write(queue.config):
            queue.config.hydra.sweeper._target_ = "hydra_plugins.x.OptunaSweeper"
        found = [result.return_value for result in queue.launch([first, second, first], 0)]
    assert found == [0.25, 0.375, 0.25]
    assert started == list(scores)


# ---- conf/local.yaml in a sweep ----------------------------------------------------------------------------------


def test_local_values_are_frozen_in_every_point_and_reach_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "local.yaml"
    file.write_text("cluster: { partition: mine, gpus: 2 }\ntracker: tensorboard\n")
    monkeypatch.setenv("FOVEA_LOCAL", str(file))
    monkeypatch.setenv("COCO_ROOT", "/data/coco")
    points: list[Point] = []
    monkeypatch.setattr("fovea_detr.study.launch.launch", lambda found, *_, **__: points.extend(found))
    typed = (
        "dynamic_scale=type1,type2",
        "hydra/launcher=submitit_slurm",
        "cluster.gpus=8",
        "hydra.launcher.dry_run=true",
    )
    sweep(monkeypatch, tmp_path, *typed)
    assert [point.name for point in points] == ["dynamic_scale=type1", "dynamic_scale=type2"]
    for point in points:
        assert (point.config.data.root, point.config.tracker) == ("/data/coco", "tensorboard")
        assert (point.config.cluster.partition, point.config.cluster.gpus) == ("mine", 8)
        assert (point.resources["partition"], point.resources["tasks_per_node"]) == ("mine", 8)


def test_the_sentence_of_the_project_needs_only_the_data(tmp_path: Path) -> None:
    sentence = ["-m", "dynamic_scale=type1,type2,type3,type4", "hydra/launcher=submitit_slurm"]
    sentence += ["hydra.launcher.dry_run=true", f"runs={tmp_path}"]
    refused = run(*sentence)
    assert refused.returncode == 2
    assert re.fullmatch(
        r"error: point dynamic_scale=type1: data\.root is not set: .*local\.yaml.*COCO_ROOT.*\n", refused.stderr
    )
    planned = run(*sentence, COCO_ROOT=str(tmp_path))
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.count(" new\n") >= 4
