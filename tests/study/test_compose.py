"""Composing a choice of groups once and setting the values: the same as Hydra's composition of each point."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fovea_detr.compose import parse
from fovea_detr.config.schema import CONF_DIR
from fovea_detr.errors import ConfigError
from fovea_detr.runs.paths import with_absolute_paths
from fovea_detr.study.sbatch import resources
from hydra_plugins.fovea_slurm import _compose
from hydra_plugins.fovea_slurm.config import register

SLURM = ["hydra/launcher=submitit_slurm", "experiment=tiny"]


@pytest.fixture
def hydra(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ConfigLoader, DictConfig]]:
    register()
    monkeypatch.setenv("FOVEA_LOCAL", "")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", ["hydra/launcher=submitit_slurm"], RunMode.MULTIRUN)
        yield loader, master


GRID = [
    ["experiment=tiny", scale, f"seed={seed}", f"schedule.lr={lr}", f"fovea.smooth={smooth}", f"cluster.gpus={gpus}"]
    for scale in ("dynamic_scale=type1", "dynamic_scale=type3")
    for seed, lr, smooth, gpus in ((0, 1e-3, 8, 1), (1, 2e-3, "6.5", 2), (2, "1e-4", 4, 4), (0, 1e-3, 8, 1))
]
GRID += [["experiment=tiny", "schedule.batch_size=8", f"seed={n}", "+cluster.extra.nice=3"] for n in (3, 4)]
GRID += [["experiment=tiny", f"schedule.batch_size={n}"] for n in (2, 4)]
GRID += [["experiment=tiny", f"threads={n}", "data.train_images=64", "tracker='none'"] for n in ("null", 2)]


def test_every_point_equals_hydras_composition(hydra: tuple[ConfigLoader, DictConfig]) -> None:
    loader, master = hydra
    shared = _compose.Composer(loader, master)
    for overrides in GRID:
        ours, hydras = shared.point(overrides), loader.load_sweep_config(master, overrides)
        launcher = OmegaConf.to_container(hydras.hydra.launcher, resolve=True)
        assert ours.typed == list(hydras.hydra.overrides.task)
        OmegaConf.set_struct(hydras, False)
        del hydras["hydra"]
        assert ours.config == with_absolute_paths(parse(hydras)), overrides
        assert ours.resources == resources(ours.config, launcher)  # type: ignore[arg-type]
    assert len(shared.trees) < len(GRID), "some are composed together"


def test_a_value_of_one_point_is_not_anothers(hydra: tuple[ConfigLoader, DictConfig]) -> None:
    """`evaluation.batch_size` follows `schedule.batch_size`, and `tasks_per_node` follows `cluster.gpus`."""
    composer = _compose.Composer(*hydra)
    points = [composer.point(["experiment=tiny", f"schedule.batch_size={n}", f"cluster.gpus={n}"]) for n in (2, 4, 2)]
    assert [point.config.evaluation.batch_size for point in points] == [2, 4, 2]
    assert [point.resources["tasks_per_node"] for point in points] == [2, 4, 2]
    assert points[0].config.schedule is not points[2].config.schedule


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=x", r"^point experiment=tiny,seed=x: seed: Value 'x' .*; nothing was started$"),
        ("fovea.smooth=-6", r"^point experiment=tiny,fovea.smooth=-6: fovea.smooth=-6.0 must be above 0"),
        ("fovea.smoth=6", "unknown key 'fovea.smoth'"),
    ],
)
def test_an_error_is_that_of_the_point(hydra: tuple[ConfigLoader, DictConfig], override: str, words: str) -> None:
    composer = _compose.Composer(*hydra)
    key = override.partition("=")[0]
    if key != "fovea.smoth":
        composer.point(["experiment=tiny", f"{key}=1"])
    with pytest.raises(ConfigError, match=words):
        composer.point(["experiment=tiny", override])
