"""A run folder or checkpoint -> its model; an image id or file -> the image as stored and as a model input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from fovea_detr.build import build_data, build_model
from fovea_detr.compose import load_config, parse
from fovea_detr.config.schema import Config, is_infrastructure
from fovea_detr.data.coco import decode
from fovea_detr.data.loader import collate_images
from fovea_detr.data.samples import Sample
from fovea_detr.data.transforms import eval_transform
from fovea_detr.errors import DataError, UserError
from fovea_detr.model.detr import DETR
from fovea_detr.runs.folder import RunFolder
from fovea_detr.training.checkpoint import load_weights
from fovea_detr.training.trained import as_trained
from fovea_detr.types import Batch


@dataclass(frozen=True)
class Picture:
    """original: [3, h, w] uint8 as stored. batch: the same image as a batch of one for the model."""

    original: Tensor
    batch: Batch
    categories: dict[int, str]  # by output of the class head


def open_model(source: Path, overrides: Sequence[str] = ()) -> tuple[Config, DETR]:
    """The model, in eval mode on the CPU, of a run folder, or of a checkpoint, with overrides where it has no settings.

    Raises UserError if the folder has no model or the weights do not fit.
    """
    if source.is_dir():
        config, weights = _of_run(RunFolder(source), overrides)
    else:
        config, weights = replace(load_config(list(overrides)), mode="eval", weights=str(source)), source
        config = replace(as_trained(config, overrides), mode="train", weights=None)
    model = build_model(config).eval()
    load_weights(model, weights, backbone_alone=False)
    return config, model


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


def open_picture(config: Config, image: str) -> Picture:
    """An image file, or an image id of the validation split. Raises UserError if there is none."""
    if Path(image).is_file():
        sample = _file_sample(Path(image))
        resized = eval_transform(config.data.recipe, long_side=config.data.long_side).prepare(sample).image
        return Picture(sample.image, collate_images([resized], [sample.size_hw]), {})
    if not image.isdigit():
        raise UserError(f"{image}: neither an image file nor the id of a validation image")
    _, val = build_data(replace(config, mode="eval", data=replace(config.data, in_memory=False, check="quick")))
    ids = val.annotations.image_ids.tolist()
    if int(image) not in ids:
        raise DataError(f"no image {image} in {val.annotations.path}: the first ids are {', '.join(map(str, ids[:5]))}")
    index = ids.index(int(image))
    example = val[index]
    batch = collate_images([example.image], [example.original_size_hw], [example.image_id])
    return Picture(val.sample(index).image, batch, val.annotations.classes.by_output)


def _file_sample(path: Path) -> Sample:
    image = decode(path)
    return Sample(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
