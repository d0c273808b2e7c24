"""Plain `python run.py -m`: all points are checked before the first one starts; then they run one after another."""

from __future__ import annotations

import re
from pathlib import Path

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fovea_detr.config.schema import CONF_DIR
from fovea_detr.errors import ConfigError
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
