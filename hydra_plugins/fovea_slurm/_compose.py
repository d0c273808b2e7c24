"""Hydra's overrides of each point -> typed, checked points. All of them, or a one-line error.

The underscore in the name keeps Hydra from importing this module with every command when it scans for plugins.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from fovea_detr.compose import checked, config_errors, one_line
from fovea_detr.config.local import with_local
from fovea_detr.config.schema import CONF_DIR, Config
from fovea_detr.errors import ConfigError, UserError
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.paths import with_absolute_paths
from fovea_detr.runs.points import point_name
from fovea_detr.study import local, sbatch
from fovea_detr.study.checks import refuse_twins
from fovea_detr.study.manifest import Point


def compose_all(loader: ConfigLoader, master: DictConfig, overrides: Sequence[Sequence[str]]) -> list[Point]:
    """The points in their order. ConfigError that names the first wrong point, or two that are the same run."""
    composer = Composer(loader, master)
    bar = tqdm(overrides, "composing", unit=" points", leave=False, delay=1, disable=None)  # None: only on a terminal
    points = [composer.point(one) for one in bar]
    refuse_twins(points)
    return points


@lru_cache(maxsize=10_000)
def parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def is_plain(override: Override) -> bool:
    """Whether it only sets one existing value of ours: Hydra sets it last, whatever it composed before.

    Not of `data`: what conf/local.yaml adds depends on it.
    """
    key, value = override.key_or_group, override.value()
    is_change = not (override.is_add() or override.is_force_add() or override.is_delete())
    is_one_value = not isinstance(value, dict | list) and "${" not in str(value) and override.package is None
    is_ours = not key.startswith("data.") and not override.is_hydra_override() and not (CONF_DIR / key).is_dir()
    return is_change and is_one_value and is_ours


class Composer:
    """Composes each choice of groups once by Hydra, and sets the values that vary as Hydra does, in the same tree.

    Points whose plain overrides have the same keys, and whose others are equal, share a tree: a value that one of them
    sets, all of them set.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.trees: dict[tuple[str, ...], tuple[DictConfig, DictConfig]] = {}

    def point(self, overrides: Sequence[str]) -> Point:
        """ConfigError that names the point."""
        try:
            return self._point(overrides)
        except (HydraException, OmegaConfBaseException) as error:
            what = one_line(error)
        except UserError as error:
            what = str(error)
        raise ConfigError(f"point {point_name(overrides)}: {what}; nothing was started")

    def _point(self, overrides: Sequence[str]) -> Point:
        read = [parsed(override) for override in overrides]
        plain = [override for override in read if is_plain(override)]
        key = tuple(override.key_or_group if is_plain(override) else str(override.input_line) for override in read)
        if key not in self.trees:
            self.trees[key] = self._composed(overrides)
        tree, typed = self.trees[key]
        ConfigLoaderImpl._apply_overrides_to_config(plain, tree)
        with config_errors():
            for override in plain:
                OmegaConf.update(typed, override.key_or_group, override.value())
        return as_point(tree, typed, [str(one.input_line) for one in read if not one.is_hydra_override()])

    def _composed(self, overrides: Sequence[str]) -> tuple[DictConfig, DictConfig]:
        """Hydra's tree, and ours without Hydra's node, with the schema's types."""
        tree = self.loader.load_sweep_config(self.master, list(overrides))
        with_local(tree, list(tree.hydra.overrides.task))
        ours = OmegaConf.masked_copy(tree, [str(key) for key in tree if key != "hydra"])
        with config_errors():
            typed = OmegaConf.merge(OmegaConf.structured(Config), ours)
        assert isinstance(typed, DictConfig)
        return tree, typed


def as_point(tree: DictConfig, typed: DictConfig, overrides: Sequence[str]) -> Point:
    """A point of a composition: of Hydra's tree, and of ours with its types."""
    launcher: Any = OmegaConf.to_container(tree.hydra.launcher, resolve=True)
    config = with_absolute_paths(checked(typed))
    if config.mode == "eval":
        from fovea_detr.training.trained import as_trained  # reads the checkpoint, with torch

        config = with_absolute_paths(as_trained(config, overrides))
    resources = local.resources if "parallel" in launcher else sbatch.resources
    return Point(point_name(overrides), config, resources(config, launcher), overrides)


def last_ap(point: Point) -> float | None:
    """The AP of a point that is done, for a sweeper that chooses the next points by it."""
    result = RunFolder(point.study_folder / point.name).result()
    return None if result is None else result["last"]["AP"]


def result_of(point: Point) -> JobReturn:
    """Of a point that has ended: its AP, or the error that a sweeper counts as a failed trial."""
    score = last_ap(point)
    if score is not None:
        return JobReturn(status=JobStatus.COMPLETED, _return_value=score)
    return JobReturn(status=JobStatus.FAILED, _return_value=UserError(f"point {point.name} has no result"))
