"""Paths of a configuration in full: a run is the same from any folder."""

from __future__ import annotations

import os
from dataclasses import replace

from fovea_detr.config.schema import Config, Data, SplitFiles

PATHS = ("weights", "model.backbone_weights")  # paths that belong to the identity; the others are infrastructure
WEIGHTS_NAMES = ("imagenet", "none")


def absolute(path: str | None) -> str | None:
    """The absolute path; None and the names of weights are returned unchanged."""
    return path if path is None or path in WEIGHTS_NAMES else os.path.abspath(os.path.expanduser(path))


def with_absolute_weights(config: Config) -> Config:
    """With absolute paths of the weights: a run is the same from the shell, from SLURM and from any folder."""
    model = replace(config.model, backbone_weights=absolute(config.model.backbone_weights))
    return replace(config, weights=absolute(config.weights), model=model)


def with_absolute_paths(config: Config) -> Config:
    """With every path absolute, for a job, which starts in another folder and on another machine."""
    data = replace(
        config.data,
        root=absolute(config.data.root),
        panoptic_root=absolute(config.data.panoptic_root),
        cache=absolute(config.data.cache),
        train=_absolute_files(config.data, config.data.train),
        val=_absolute_files(config.data, config.data.val),
    )
    return replace(with_absolute_weights(config), data=data, runs=absolute(config.runs))


def _absolute_files(data: Data, files: SplitFiles) -> SplitFiles:
    return SplitFiles(*(path and absolute_split_path(data, path) for path in (files.annotations, files.images)))


def absolute_split_path(data: Data, path: str) -> str:
    """A path of data.train or data.val in full: relative to data.root, or to the working directory without one."""
    return os.path.abspath(os.path.join(os.path.expanduser(data.root or ""), os.path.expanduser(path)))
