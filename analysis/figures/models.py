"""An image id or file -> the image as stored and as a model input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from fovea_detr.build import build_data
from fovea_detr.data.loader import collate_images
from fovea_detr.errors import DataError, UserError
from fovea_detr.predict.pictures import as_pixels
from fovea_detr.predict.predictor import Predictor
from fovea_detr.types import Batch


@dataclass(frozen=True)
class Picture:
    """original: [3, h, w] uint8, upright. batch: the same image as a batch of one for the model."""

    original: Tensor
    batch: Batch
    names: dict[int, str]  # of the classes by output; empty for a file


def open_picture(predictor: Predictor, image: str) -> Picture:
    """An image file, or an image id of the validation split. Raises UserError if there is none."""
    if Path(image).is_file():
        original = as_pixels(image)
        return Picture(original, predictor.batch([original]), {})
    if not image.isdigit():
        raise UserError(f"{image}: neither an image file nor the id of a validation image")
    config = predictor.trained.config
    _, val = build_data(replace(config, mode="eval", data=replace(config.data, in_memory=False, check="quick")))
    ids = val.annotations.image_ids.tolist()
    if int(image) not in ids:
        raise DataError(f"no image {image} in {val.annotations.path}: the first ids are {', '.join(map(str, ids[:5]))}")
    index = ids.index(int(image))
    example = val[index]
    batch = collate_images([example.image], [example.original_size_hw], [example.image_id])
    return Picture(val.sample(index).image, batch, val.annotations.classes.by_output)
