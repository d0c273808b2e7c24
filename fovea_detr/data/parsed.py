"""A split that was parsed once: later starts map its arrays from data.cache instead of parsing the annotations again.

A stored split is used only for the same annotations (by their content), the same names of files and folders below the
images folder, the same options and the same code of this room. Small files are parsed in less time than that takes.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from fovea_detr.data.annotations import CocoSplit
from fovea_detr.data.flaws import Fate, Flaws
from fovea_detr.data.image_table import MOST_STATS, Images, check_files
from fovea_detr.data.layouts import Source
from fovea_detr.errors import tell
from fovea_detr.machine import mapped

SMALLEST_BYTES = 10_000_000  # of the annotation file
DAMAGED = (OSError, EOFError, ValueError, TypeError, AttributeError, ImportError, IndexError, pickle.UnpicklingError)


def once_parsed(source: Source, parse: partial[CocoSplit], folder: Path) -> CocoSplit:
    """`parse()`, or what it returned in an earlier process. folder: of the stored splits. DataError: as `parse`."""
    source.check()
    if source.annotations.stat().st_size < SMALLEST_BYTES:
        return parse()
    place = _hash(str(source.annotations.absolute()), str(source.images.absolute()), source.holdout, parse.keywords)
    path = folder / f"annotations-{place}.bin"
    key = _hash(source.fingerprint(), _names_below(source.images), source.holdout, parse.keywords, _code())
    with suppress(*DAMAGED):
        stored, split = mapped.read(path)
        if stored == key and not _file_flaws(split):
            return split
    size = source.annotations.stat().st_size / 1e6
    tell(f"parsing {source.annotations} ({size:.0f} MB); the next start takes the result from {path}")
    split = parse()
    if all(flaw.fate is not Fate.REFUSED for flaw in split.flaws.found):
        with suppress(OSError):  # a folder that may not be written, or a full disk: the next start parses again
            folder.mkdir(parents=True, exist_ok=True)
            mapped.write((key, split), path)
    return split


def _file_flaws(split: CocoSplit) -> bool:
    """Whether an image of a small split has become empty or unreadable: names alone do not tell."""
    if len(split.image_ids) > MOST_STATS:
        return False
    flaws = Flaws(split.path)
    check_files(Images(split.image_ids, split.file_names, split.sizes_hw, split.image_ids[:0]), split.folder, flaws)
    return bool(flaws.found)


def _names_below(folder: Path) -> str:
    return _hash(*((where, sorted(folders), sorted(files)) for where, folders, files in sorted(os.walk(folder))))


@cache
def _code() -> str:
    return _hash(*(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
