"""The image file that an annotation means: exports write names of other systems, of URLs and of other folders.

A name that is a file's, relative to the images folder, is taken as it stands. Any other name is compared part by part,
without regard to separators (`\\`, `//`, `./`), URL encoding, case and unicode normalisation, and resolved if exactly
one file of the folder fits. Where the folder that it names does not exist, or lies outside (`/`, `C:`, `..`, `https:`),
its leading parts are left out: `../upload/1/a.jpg` is `1/a.jpg` or `a.jpg`. No file outside the folder is ever taken.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fovea_detr.errors import DataError

ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:|[A-Za-z0-9+.-]+://")  # of Linux, of Windows, a URL


def resolve_names(path: Path, folder: Path, content: Any) -> None:
    """Replace each file_name in COCO's dict that is no file's by the one that it means. A directory is listed once.

    path: of the annotations, for messages. A name that fits nothing stays. DataError: a name fits several files, or
    two names fit one.
    """
    images = content.get("images") if isinstance(content, dict) else None
    entries = [one for one in images if isinstance(one, dict)] if isinstance(images, list) else []
    entries = [one for one in entries if isinstance(one.get("file_name"), str)]
    tree = ImageFolder(folder)
    strange = [one for one in entries if not tree.holds(one["file_name"])]
    taken = {one["file_name"]: one["file_name"] for one in entries} if strange else {}
    for one in strange:
        name = one["file_name"]
        one["file_name"] = tree.resolve(path, name)
        other = taken.setdefault(one["file_name"], name)
        if other != name:
            raise DataError(f"{path}: images {other} and {name} are one file, {folder / one['file_name']}; correct one")


def parts(name: str) -> list[str]:
    """The parts of a file name, in the form in which they are compared."""
    plain = unicodedata.normalize("NFC", unquote(name).casefold())
    return [part for part in plain.replace("\\", "/").split("/") if part not in ("", ".")]


class ImageFolder:
    """The files of a folder, listed when they are asked for. Names are relative to it, with `/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listed: dict[str, frozenset[str]] = {}
        self._by_part: dict[str, dict[str, list[str]]] = {}

    def holds(self, name: str) -> bool:
        """Whether this is a file's name as it stands."""
        parent, _, last = name.rpartition("/")
        return last in self._names(parent) and not name.startswith("/")

    def resolve(self, path: Path, name: str) -> str:
        """The one file that fits a name which is no file's; the name itself, or its last part, if none does."""
        wanted = parts(name)
        is_outside = bool(ABSOLUTE.match(name)) or ".." in wanted
        fitting = [] if is_outside else self._fitting(wanted)
        if not fitting and (is_outside or not self._fitting(wanted[:1])):
            fitting = [file for start in range(len(wanted)) for file in self._fitting(wanted[start:])]
        if len(fitting) > 1:
            files = " and ".join(str(self.folder / file) for file in sorted(fitting)[:2])
            raise DataError(f"{path}: image {name} may be {files}; write file_name as one of them")
        last = re.split(r"[/\\]", name)[-1] if is_outside else name
        return fitting[0] if fitting else last

    def _fitting(self, wanted: list[str]) -> list[str]:
        found = [""] if wanted else []
        for part in wanted:
            found = [f"{one}/{name}".lstrip("/") for one in found for name in self._parts_of(one).get(part, ())]
        return found

    def _names(self, inner: str) -> frozenset[str]:
        """Of one directory; nothing if there is none, or if its name is not a plain one."""
        if inner not in self._listed:
            is_plain = not inner or not {"", ".", ".."} & set(inner.split("/"))
            try:
                self._listed[inner] = frozenset(os.listdir(self.folder / inner) if is_plain else ())
            except (OSError, ValueError):  # no directory, or a name that no file system has
                self._listed[inner] = frozenset()
        return self._listed[inner]

    def _parts_of(self, inner: str) -> dict[str, list[str]]:
        if inner not in self._by_part:
            by_part = self._by_part[inner] = {}
            for name in self._names(inner):
                by_part.setdefault("/".join(parts(name)), []).append(name)
        return self._by_part[inner]
