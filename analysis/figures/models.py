"""A run folder or a checkpoint -> its model; an image id or a file -> the image, as disk and as the model see it."""

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
from fovea_detr.types import Batch


@dataclass(frozen=True)
class Picture:
    """original: [3, h, w] uint8 as on disk. batch: the same image alone, as the model is given it."""

    original: Tensor
    batch: Batch
    categories: dict[int, str]


def open_model(source: Path, overrides: Sequence[str] = ()) -> tuple[Config, DETR]:
    """A run folder's model with its weights, or that of a checkpoint and the overrides it was trained with.

    Raises UserError, one line, where there is no such model. On the CPU.
    """
    if source.is_dir():
        config, weights = _of_run(RunFolder(source), overrides)
    else:
        config, weights = load_config(list(overrides)), source
    model = build_model(config).eval()
    load_weights(model, weights, backbone_alone=False)
    return config, model


def _of_run(folder: RunFolder, overrides: Sequence[str]) -> tuple[Config, Path]:
    text = folder.config_text()
    if text is None:
        raise UserError(f"{folder.path}: no config.yaml in it; name a run folder, RUNS/STUDY/POINT, or a checkpoint")
    for key in (override.partition("=")[0] for override in overrides):
        if not is_infrastructure(key):
            raise UserError(f"{key}: a run's settings are its own; only where its data are may be told: data.root=DIR")
    try:
        composed = OmegaConf.merge(OmegaConf.create(text), OmegaConf.from_dotlist(list(overrides)))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{folder.path / 'config.yaml'}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(composed, DictConfig):
        raise UserError(f"{folder.path / 'config.yaml'}: not what a run writes")
    evaluated = composed.get("weights") if composed.get("mode") == "eval" else None
    # What the run started from may have moved since; its own checkpoint holds everything.
    config = parse(OmegaConf.merge(composed, {"mode": "train", "weights": None, "model": {"backbone_weights": "none"}}))  # type: ignore[arg-type]
    if evaluated is None and not folder.checkpoint_path.exists():
        raise UserError(f"{folder.path}: no checkpoint.pt in it: the run has not saved yet, or it has been removed")
    return config, Path(evaluated) if evaluated is not None else folder.checkpoint_path


def open_picture(config: Config, image: str) -> Picture:
    """An image file, or an id of the configuration's validation split. Raises UserError if there is none."""
    if Path(image).is_file():
        sample = _file_sample(Path(image))
        resized = eval_transform(config.data.recipe).prepare(sample).image
        return Picture(sample.image, collate_images([resized], [sample.size_hw]), {})
    if not image.isdigit():
        raise UserError(f"{image}: neither an image file nor a number, an id of the validation images")
    _, val = build_data(replace(config, mode="eval", data=replace(config.data, in_memory=False, check="quick")))
    ids = val.annotations.image_ids.tolist()
    if int(image) not in ids:
        raise DataError(f"no image {image} in {val.annotations.path}: the first ids are {', '.join(map(str, ids[:5]))}")
    index = ids.index(int(image))
    example = val[index]
    batch = collate_images([example.image], [example.original_size_hw], [example.image_id])
    return Picture(val.sample(index).image, batch, val.annotations.categories)


def _file_sample(path: Path) -> Sample:
    image = decode(path)
    return Sample(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
