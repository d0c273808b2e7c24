"""An image file -> pixels: upright, RGB, 8 bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fovea_detr.data.flaws import first_line
from fovea_detr.data.headers import UNREADABLE, orientation
from fovea_detr.errors import DataError

GREY16, LARGEST16 = ("I;16", "I;16L", "I;16B", "I;16N", "I"), 65535  # PIL before version 11 opens 16-bit PNG as "I"


def decode(path: Path) -> Tensor:
    """[3, h, w] uint8 RGB, interleaved, from any mode that PIL reads. DataError: missing, empty, truncated, no image.

    The EXIF orientation is applied, as detectron2 does. 16-bit grey is divided by 257, also where only 12 bits are
    used. Of several frames, the first.

    By PIL, not torchvision: torchvision took 1.2 ms instead of 1.4 for 640 x 480 (of about 6 for the whole pipeline),
    but its pixels equal PIL's only while both packages contain the same libjpeg, it writes libjpeg's warnings to
    stderr, and every other format would still need PIL.
    """
    try:
        with Image.open(path) as image:
            return upright_rgb(image)
    except UNREADABLE as error:
        empty = path.is_file() and path.stat().st_size == 0
        reason = "the file is empty" if empty else first_line(error)
        raise DataError(f"{path}: cannot be read as an image ({reason}); get it again") from error


def upright_rgb(image: Image.Image) -> Tensor:
    """[3, h, w] uint8, interleaved, its EXIF orientation applied. Raises what PIL raises, and ValueError."""
    upright = ImageOps.exif_transpose(image) if orientation(image) > 1 else image
    return torch.from_numpy(_as_rgb(upright)).permute(2, 0, 1)


def _as_rgb(image: Image.Image) -> np.ndarray:
    """[h, w, 3] uint8. ValueError: greys that neither 8 nor 16 bits can hold, as in floats from 0 to 1."""
    if image.mode in GREY16:
        values = np.asarray(image).astype(np.int64)
        _refuse_beyond(values, 0, LARGEST16)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        values = np.asarray(image)
        _refuse_beyond(values, 0, 255)
        if 0 < values.max() <= 1:
            raise ValueError("its pixels are floats from 0 to 1: convert it to 8 or 16 bits")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _refuse_beyond(values: np.ndarray, low: int, high: int) -> None:
    if not (low <= values.min() and values.max() <= high):
        raise ValueError(f"its pixels go from {values.min():g} to {values.max():g}: convert it to 8 or 16 bits")
