"""Files that are given as weights and are something else: what they are, and what to do."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

HEAD_BYTES = 1024
SAFETENSORS_ENDING = b'{"'  # after 8 bytes that hold the header's length
STARTS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: run `git lfs pull`"),
    (b"<!doctype html", "a web page: download the file itself"),
    (b"<html", "a web page: download the file itself"),
    (b"<?xml", "an XML document: download the file itself"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"\x93numpy", "a numpy array"),
    (b"\x89hdf", "a Keras or HDF5 file"),
    (b"\x89png", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"{", "a JSON file"),
)
ZIPPED = (  # parts of names in the archive
    ("/code/", "a TorchScript archive, which is a program: save the model's state_dict instead"),
    (".npy", "a numpy archive"),
    ("model.weights.h5", "a Keras file"),
)
TEXT = re.compile(rb"[\t\n\r\x20-\x7e]+")
MADE_BY = {"pytorch-lightning_version": "PyTorch Lightning", "__author__": "Detectron2", "message_hub": "MMEngine"}
EXPECTED = "expected a checkpoint or a state dict of torch.save"


def what_it_is(path: Path) -> str | None:
    """`empty`, `a git-lfs pointer, ...; expected ...`; None for a file that is not recognised."""
    head = path.open("rb").read(HEAD_BYTES)
    if not head:
        return f"empty; {EXPECTED}"
    start = head.lstrip().lower()
    found = next((words for mark, words in STARTS if start.startswith(mark)), None) or _zipped(path)
    if found is None and path.suffix == ".onnx":
        found = "an ONNX model, which has no state dict"
    if found is None and head[257:262] == b"ustar":
        found = "a tar archive: unpack it"
    if found is None and TEXT.fullmatch(head):
        found = "a text file, not a checkpoint"
    return found and f"{found}; {EXPECTED}"


def made_by(content: Mapping[str, Any]) -> str:
    """` (of PyTorch Lightning)` for a checkpoint of a program that marks its own; else nothing."""
    return next((f" (of {program})" for key, program in MADE_BY.items() if key in content), "")


def is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(10)
    length = int.from_bytes(head[:8], "little")
    return head[8:] == SAFETENSORS_ENDING and length <= path.stat().st_size - 8


def _zipped(path: Path) -> str | None:
    with suppress(zipfile.BadZipFile, OSError):
        names = zipfile.ZipFile(path).namelist()
        is_checkpoint = any(name.endswith("/data.pkl") for name in names)
        other = None if is_checkpoint else "a zip archive without a checkpoint of torch.save: unpack it"
        return next((words for part, words in ZIPPED if any(part in f"/{name}" for name in names)), other)
    return None
