"""Hydra's overrides of each point -> typed, checked points. All of them, or a one-line error.

The underscore in the name keeps Hydra from importing this module with every command when it scans for plugins.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fovea_detr.compose import one_line, parse
from fovea_detr.config.local import with_local
from fovea_detr.errors import ConfigError, UserError
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.identity import point_name, with_absolute_paths
from fovea_detr.study.launch import refuse_twins
from fovea_detr.study.manifest import Point
from fovea_detr.study.sbatch import resources

WORTH_A_FORK = 16  # points per process: Hydra composes ten a second
_shared: tuple[ConfigLoader, DictConfig]


def compose_all(loader: ConfigLoader, master: DictConfig, overrides: Sequence[Sequence[str]]) -> list[Point]:
    """The points in their order. ConfigError that names the first wrong point, or two that are the same run."""
    global _shared
    _shared = (loader, master)
    processes = min(len(os.sched_getaffinity(0)), 8, len(overrides) // WORTH_A_FORK)
    if processes < 2:
        points = [_or_raise(answer) for answer in map(_answer, overrides)]
    else:
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            points = [_or_raise(answer) for answer in pool.imap(_answer, overrides, chunksize=4)]
    refuse_twins(points)
    return points


def _or_raise(answer: Point | str) -> Point:
    if isinstance(answer, str):
        raise ConfigError(f"{answer}; nothing was started")
    return answer


def _answer(overrides: Sequence[str]) -> Point | str:
    """A point, or what is wrong with it."""
    try:
        return compose(*_shared, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        return f"point {point_name(overrides)}: {one_line(error)}"
    except UserError as error:
        return f"point {point_name(overrides)}: {error}"


def compose(loader: ConfigLoader, master: DictConfig, overrides: Sequence[str]) -> Point:
    composed = loader.load_sweep_config(master, list(overrides))
    typed = list(composed.hydra.overrides.task)
    with_local(composed, typed)
    launcher = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    config = with_absolute_paths(parse(composed))
    if config.mode == "eval":
        from fovea_detr.training.trained import as_trained  # reads the checkpoint, with torch

        config = with_absolute_paths(as_trained(config, typed))
    assert isinstance(launcher, dict)
    asked = resources(config, {str(key): value for key, value in launcher.items()})
    return Point(point_name(typed), config, asked, typed)


def last_ap(point: Point) -> float | None:
    """The AP of a point that is done, for a sweeper that chooses the next points by it."""
    result = RunFolder(point.study_folder / point.name).result()
    return None if result is None else result["last"]["AP"]
