"""A run folder or a checkpoint -> its model, its configuration and its class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fovea_detr.build import build_model
from fovea_detr.compose import load_config, parse
from fovea_detr.config.schema import Config, is_infrastructure
from fovea_detr.data.categories import COCO_CLASSES, coco_names
from fovea_detr.errors import UserError
from fovea_detr.model.detr import DETR
from fovea_detr.runs.folder import RunFolder
from fovea_detr.training.checkpoint import load_weights
from fovea_detr.training.files import read
from fovea_detr.training.trained import as_trained, class_names


@dataclass(frozen=True)
class Trained:
    """A model in eval mode, on the CPU. names: of the classes, category_ids: of the data set, both by output."""

    model: DETR
    config: Config
    names: dict[int, str]
    category_ids: dict[int, int]


def open_trained(source: Path | str, overrides: Sequence[str] = ()) -> Trained:
    """source: a run folder, or a checkpoint, with overrides for what it does not say about its training.

    Raises UserError if the folder has no model or the weights do not fit.
    """
    source = Path(source).expanduser()
    if source.is_dir():
        config, weights = _of_run(RunFolder(source), overrides)
    else:
        config, weights = replace(load_config(list(overrides)), mode="eval", weights=str(source)), source
        config = replace(as_trained(config, overrides, quiet=True), mode="train", weights=None)
    content = read(weights)
    model = build_model(config).eval()
    load_weights(model, content, backbone_alone=False, name=str(weights))
    names = names_of(content, config)
    return Trained(model, config, names, content.get("category_ids") or {output: output for output in names})


def names_of(content: Mapping[str, Any], config: Config) -> dict[int, str]:
    """A checkpoint's class names by output; COCO's for a head of COCO's size that has none; otherwise empty."""
    if names := class_names(content):
        return names
    return coco_names() if (config.data.num_classes or COCO_CLASSES) == COCO_CLASSES else {}


def _of_run(folder: RunFolder, overrides: Sequence[str]) -> tuple[Config, Path]:
    text = folder.config_text()
    if text is None:
        raise UserError(f"{folder.path}: no config.yaml in it; give a run folder, RUNS/STUDY/POINT, or a checkpoint")
    for key in (override.partition("=")[0] for override in overrides):
        if not is_infrastructure(key):
            raise UserError(
                f"{key}: a run's settings are fixed; only the location of its data can change: data.root=DIR"
            )
    try:
        composed = OmegaConf.merge(OmegaConf.create(text), OmegaConf.from_dotlist(list(overrides)))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{folder.path / 'config.yaml'}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(composed, DictConfig):
        raise UserError(f"{folder.path / 'config.yaml'}: not a configuration")
    evaluated = composed.get("weights") if composed.get("mode") == "eval" else None
    # The run's initial weights may have moved; its own checkpoint contains everything.
    config = parse(OmegaConf.merge(composed, {"mode": "train", "weights": None, "model": {"backbone_weights": "none"}}))  # type: ignore[arg-type]
    if evaluated is None and not folder.checkpoint_path.exists():
        raise UserError(f"{folder.path}: no checkpoint.pt in it: not saved yet, or deleted")
    return config, Path(evaluated) if evaluated is not None else folder.checkpoint_path
