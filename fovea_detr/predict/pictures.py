"""Pictures as people have them -> upright RGB tensors: files, folders and patterns; PIL images, arrays, tensors."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fovea_detr.data.flaws import first_line
from fovea_detr.data.headers import UNREADABLE
from fovea_detr.data.pixels import decode, upright_rgb
from fovea_detr.errors import DataError

SUFFIXES = frozenset(Image.registered_extensions())


def find_pictures(wanted: Sequence[str]) -> list[Path]:
    """Files, folders (their image files, subfolders included) and patterns (`photos/*.jpg`) -> files, each once.

    DataError, one line: nothing is there, a folder holds no image file, a pattern matches none.
    """
    found = [path for one in wanted for path in _files(os.path.expanduser(one))]
    return list(dict.fromkeys(found))


def _files(wanted: str) -> list[Path]:
    path = Path(wanted)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file()]
        return files or _none(f"{path}: no image file in this folder")
    if glob.has_magic(wanted):
        matches = sorted(Path(p) for p in glob.glob(wanted, recursive=True) if Path(p).is_file())
        return matches or _none(f"{wanted}: no file matches")
    return _none(f"{path}: no such file or folder")


def _none(message: str) -> list[Path]:
    raise DataError(message)


def as_pixels(picture: Any) -> Tensor:
    """A path, a PIL image, an array [h, w, 3] or [h, w], or a tensor [3, h, w], uint8 -> [3, h, w] uint8 RGB.

    DataError: another type or shape, or a file that cannot be read.
    """
    if isinstance(picture, str | Path):
        return decode(Path(picture).expanduser())
    if isinstance(picture, Image.Image):
        return _of_image(picture)
    if isinstance(picture, np.ndarray):
        return _of_array(picture)
    if isinstance(picture, Tensor):
        return _of_tensor(picture)
    raise DataError(f"a picture is a path, a PIL image, a numpy array or a tensor, not a {type(picture).__name__}")


def _of_image(image: Image.Image) -> Tensor:
    try:
        return upright_rgb(image)
    except UNREADABLE as error:
        raise DataError(f"a PIL image of mode {image.mode} cannot be read ({first_line(error)})") from error


def _of_array(array: np.ndarray) -> Tensor:
    is_grey = array.ndim == 2
    if array.dtype != np.uint8 or not (is_grey or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        raise DataError(
            f"an array of shape {list(array.shape)} and type {array.dtype}: a picture is [height, width, 3] (RGB) or "
            "[height, width], uint8 from 0 to 255"
        )
    rgb = np.repeat(array[..., None], 3, axis=2) if is_grey else array
    return torch.from_numpy(np.array(rgb, order="C")).permute(2, 0, 1)


def _of_tensor(tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.uint8 or tensor.ndim != 3 or tensor.shape[0] != 3 or not tensor.numel():
        raise DataError(
            f"a tensor of shape {list(tensor.shape)} and type {str(tensor.dtype).removeprefix('torch.')}: a picture is "
            "[3, height, width] (RGB), uint8 from 0 to 255"
        )
    return tensor.cpu()


def pictures_of(given: Any) -> Iterator[Any]:
    """One picture, or a sequence of them -> one by one."""
    if isinstance(given, str | Path | Image.Image) or (isinstance(given, np.ndarray | Tensor) and given.ndim < 4):
        yield given
    else:
        yield from given
