"""Files of weights: read without executing any code in them."""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fovea_detr.errors import WeightsError
from fovea_detr.training.foreign import is_safetensors, what_it_is


def read(path: Path | str) -> dict[str, Any]:
    """A checkpoint file as a dict, on the CPU. No code in it is executed; an argparse.Namespace is allowed as data.

    Raises WeightsError, one line: no such file, not a checkpoint, truncated, changed since it was written, or a pickle
    that needs to run code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file")
    if is_safetensors(path):
        return _read_safetensors(path)
    if what := what_it_is(path):
        raise WeightsError(f"{path}: {what}")
    try:
        _refuse_changed_bytes(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickles of other programs
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's messages: "Unsupported global: GLOBAL x", or "unsupported GLOBAL x whose module ..".
        unsafe = "GLOBAL " in str(error)
        what = "it holds objects that only running code from it could load" if unsafe else "not a readable checkpoint"
        raise WeightsError(f"{path}: {what}; expected tensors by name, as torch.save writes a state dict") from None
    except WeightsError:
        raise
    except Exception as error:  # torch.load of damaged bytes raises many types, some without a message
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise WeightsError(f"{path}: truncated or not a checkpoint ({reason})") from None
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, expected a state dict or a dict with 'model'")
    return dict(content)


def _read_safetensors(path: Path) -> dict[str, Any]:
    if find_spec("safetensors") is None:
        raise WeightsError(f"{path}: a safetensors file needs a package: pip install safetensors")
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as error:  # a class of its own, of another module
        raise WeightsError(f"{path}: damaged safetensors file ({str(error).splitlines()[0]})") from None


def _refuse_changed_bytes(path: Path) -> None:
    """Compare every tensor with the checksum beside it (CRC-32, of the zip format), which torch.load does not read."""
    if not zipfile.is_zipfile(path):  # written before torch 1.6: there are no checksums in it
        return
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise WeightsError(f"{path}: damaged: some of its bytes are not those that were written")


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """The model's tensors by name, from a checkpoint (under 'model' or 'state_dict') or a bare state dict."""
    return tensors_of(read(path), path)


def tensors_of(content: dict[str, Any], path: Path | str) -> dict[str, Tensor]:
    """The model's tensors by name, in the content of the file at `path`."""
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = dict(content[key])
            break
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: there are no tensors in it; expected a state dict or a dict with 'model'")
    return tensors
