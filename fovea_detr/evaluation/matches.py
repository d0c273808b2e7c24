"""What a resample of the images needs of one evaluation: which detection found something, on which image.

A file of the run folder, a few megabytes for 5000 images. Reading it needs numpy alone.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fovea_detr.errors import RunFolderError
from fovea_detr.runs.folder import MATCHES, RunFolder
from fovea_detr.runs.state import number

VERSION = 1
AREAS = ("all", "small", "medium", "large")
ERRORS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")  # TIDE's, in the paper's order
# How far the AP may be from that of result.json, by the source of the matches. A checkpoint may be evaluated on another
# device than the run was, whose sums have another order.
TOLERANCES = {"evaluation": 1e-12, "predictions": 1e-12, "checkpoint": 1e-3}
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)  # a damaged npz
AGAIN = "make it again with python -m fovea_detr.evaluation matches"


@dataclass(frozen=True)
class Matches:
    """K categories, A areas, T IoU thresholds, N images; D detections of all categories, M pairs of image and category.

    The detections of category k are at starts[k]:starts[k + 1], in COCOeval's order: best score first, at most 100 an
    image. Bit t of `matched` and `ignored` is of the IoU threshold t; an ignored detection is never matched.
    """

    image_ids: np.ndarray  # [N] int64, ascending; the index of an image is its place here
    category_ids: np.ndarray  # [K] int64, ascending
    category_names: np.ndarray  # [K] text
    ious: np.ndarray  # [T] float64
    starts: np.ndarray  # [K + 1] int64
    images: np.ndarray  # [D] index of the image
    matched: np.ndarray  # [A, D] uint16
    ignored: np.ndarray  # [A, D] uint16
    object_images: np.ndarray  # [M] index of the image
    object_categories: np.ndarray  # [M] index of the category
    objects: np.ndarray  # [A, M] how many objects count there: no crowds, of that size
    errors: np.ndarray  # [len(ERRORS)] float64: dAP50 by type of error, a fraction
    ap: float  # the evaluator's
    source: str = "evaluation"  # a key of TOLERANCES

    @property
    def categories(self) -> dict[int, str]:
        """The names by id."""
        return dict(zip(self.category_ids.tolist(), self.category_names.tolist(), strict=True))

    @property
    def errors_by_type(self) -> dict[str, float]:
        return dict(zip(ERRORS, self.errors.tolist(), strict=True))


def write_matches(folder: RunFolder, matches: Matches, name: str = MATCHES) -> None:
    """Write them into a run folder; indices as narrow as their number allows."""
    columns: dict[str, Any] = dict(vars(matches))
    for key, count in (("images", len(matches.image_ids)), ("object_images", len(matches.image_ids))):
        columns[key] = columns[key].astype(np.min_scalar_type(max(count - 1, 0)))
    columns["object_categories"] = matches.object_categories.astype(np.uint16)
    columns["objects"] = matches.objects.astype(np.uint16)
    folder.write(name, lambda file: np.savez_compressed(file, version=VERSION, **columns))


def read_matches(folder: Path, name: str = MATCHES) -> Matches:
    """The matches of a run, those of its last evaluation by default. RunFolderError: there are none, or not its own.

    Those of the last evaluation must have the AP of result.json.
    """
    matches = _read(folder / name)
    if name == MATCHES:
        check_result(folder, matches.ap, matches.source)
    return matches


def check_result(folder: Path, ap: float, source: str) -> None:
    """RunFolderError: result.json has another AP than the matches of the last evaluation."""
    result = RunFolder(folder).result()
    expected = _ap(result)
    if result is not None and not abs(expected - ap) <= TOLERANCES[source]:
        where = folder / MATCHES
        raise RunFolderError(f"{where}: it has AP {ap!r}, result.json {expected!r}: of another run; {AGAIN} {folder}")


def refuse_other_ap(folder: RunFolder, ap: float) -> None:
    """RunFolderError: the run is finished, and this evaluation of its checkpoint has another AP than result.json."""
    if folder.has_result() and not abs((expected := _ap(folder.result())) - ap) <= TOLERANCES["checkpoint"]:
        raise RunFolderError(
            f"{folder.path}: its checkpoint has AP {ap!r} here, result.json {expected!r}: the checkpoint or the images "
            "are not those of the result; nothing was written"
        )


def _ap(result: Mapping[str, Any] | None) -> float:
    last = (result or {}).get("last")
    return number(last.get("AP")) if isinstance(last, Mapping) else math.nan


def _read(path: Path) -> Matches:
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise RunFolderError(f"{path}: no matches are stored there; {AGAIN} {path.parent}") from None
    except UNREADABLE as error:
        raise RunFolderError(f"{path}: damaged ({str(error).splitlines()[0]}); {AGAIN} {path.parent}") from None
    version = columns.pop("version", None)
    if version is None or int(version) != VERSION:
        found = "none" if version is None else int(version)
        raise RunFolderError(f"{path}: format {found}, this version reads {VERSION}; {AGAIN} {path.parent}")
    return replace(Matches(**columns), ap=float(columns["ap"]), source=str(columns["source"]))
