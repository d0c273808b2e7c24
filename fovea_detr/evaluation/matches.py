"""What a resample of the images needs of one evaluation: which detection found something, on which image.

Of boxes and of masks `Matches`, of panoptic segments `Segments`: files of the run folder, a few megabytes each for 5000
images. Reading them needs numpy alone.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fovea_detr.errors import RunFolderError
from fovea_detr.runs.folder import COCO_METRICS, PANOPTIC_METRICS, SEGM, Metric, Quality, RunFolder
from fovea_detr.runs.state import number

VERSION = 1
AREAS = ("all", "small", "medium", "large")
ERRORS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")  # TIDE's, in the paper's order
# How far the score may be from that of result.json, by the source of the matches. A checkpoint may be evaluated on
# another device than the run was, whose sums have another order.
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
    def score(self) -> float:
        return self.ap

    @property
    def truth(self) -> tuple[np.ndarray, ...]:
        """Equal for all evaluations on the same images, categories and objects."""
        return self.image_ids, self.category_ids, self.object_images, self.object_categories, self.objects

    @property
    def categories(self) -> dict[int, str]:
        """The names by id."""
        return dict(zip(self.category_ids.tolist(), self.category_names.tolist(), strict=True))

    @property
    def errors_by_type(self) -> dict[str, float]:
        return dict(zip(ERRORS, self.errors.tolist(), strict=True))


@dataclass(frozen=True)
class Segments:
    """K categories, N images; P pairs of an image and a category that have a segment, true or found, in this order.

    Panoptic quality is made of these numbers' sums over the images (Kirillov et al., CVPR 2019).
    """

    image_ids: np.ndarray  # [N] int64, ascending; the index of an image is its place here
    category_ids: np.ndarray  # [K] int64, ascending
    category_names: np.ndarray  # [K] text
    things: np.ndarray  # [K] bool
    images: np.ndarray  # [P] index of the image
    labels: np.ndarray  # [P] index of the category
    ious: np.ndarray  # [P] float64: the sum of the IoUs of the true positives
    tp: np.ndarray  # [P] how many true positives
    fp: np.ndarray  # [P] segments found that are none
    fn: np.ndarray  # [P] true segments that were not found
    pq: float  # the evaluator's
    source: str = "evaluation"  # a key of TOLERANCES

    @property
    def score(self) -> float:
        return self.pq

    @property
    def truth(self) -> tuple[np.ndarray, ...]:
        """Equal for all evaluations on the same images, categories and true segments."""
        true = self.tp.astype(np.int64) + self.fn
        held = true > 0
        return self.image_ids, self.category_ids, self.things, self.images[held], self.labels[held], true[held]


class MatchFile(NamedTuple):
    """A file of matches, `stem`.npz. metrics: those that a resample of it gives; the first is its score.

    predictions: the files that it can be made from.
    """

    stem: str
    form: type[Matches] | type[Segments]
    metrics: tuple[Metric, ...] | tuple[Quality, ...]
    predictions: tuple[str, ...]

    @property
    def score(self) -> str:
        return self.metrics[0].name

    def name(self, epoch: int | None = None) -> str:
        """Of the last evaluation, or of one after this epoch."""
        return f"{self.stem}.npz" if epoch is None else f"{self.stem}_{epoch}.npz"

    def read(self, folder: Path) -> Matches | Segments:
        """Of the last evaluation of a run. RunFolderError."""
        return read_segments(folder) if self.form is Segments else read_matches(folder, self.name())


MASK_METRICS = tuple(metric._replace(name=f"{SEGM}{metric.name}") for metric in COCO_METRICS)
PANOPTIC_FILES = ("predictions_panoptic.json", "predictions_panoptic")
OF_BOXES = MatchFile("matches", Matches, COCO_METRICS, ("predictions.json",))
OF_MASKS = MatchFile("matches_segm", Matches, MASK_METRICS, ("predictions_segm.json",))
OF_SEGMENTS = MatchFile("matches_panoptic", Segments, PANOPTIC_METRICS, PANOPTIC_FILES)
MATCH_FILES = (OF_BOXES, OF_MASKS, OF_SEGMENTS)
MATCHES = OF_BOXES.name()
Form = TypeVar("Form", Matches, Segments)


def write_matches(folder: RunFolder, matches: Matches | Segments, name: str = MATCHES) -> None:
    """Write them into a run folder; indices and counts as narrow as their number allows."""
    columns: dict[str, Any] = dict(vars(matches))
    of_images = np.min_scalar_type(max(len(matches.image_ids) - 1, 0))
    narrow: dict[str, Any] = dict.fromkeys(("images", "object_images"), of_images)
    narrow |= dict.fromkeys(("object_categories", "objects", "labels", "tp", "fp", "fn"), np.uint16)
    columns |= {key: columns[key].astype(kind) for key, kind in narrow.items() if key in columns}
    folder.write(name, lambda file: np.savez_compressed(file, version=VERSION, **columns))


def read_matches(folder: Path, name: str = MATCHES) -> Matches:
    """Those of boxes or of masks, of the last evaluation by default. RunFolderError: there are none, or not its own.

    Those of the last evaluation must have the AP of result.json.
    """
    return _read(folder, name, Matches)


def read_segments(folder: Path) -> Segments:
    """As `read_matches`, of panoptic segments, with the PQ of result.json."""
    return _read(folder, OF_SEGMENTS.name(), Segments)


def check_result(folder: Path, score: float, source: str, file: MatchFile = OF_BOXES) -> None:
    """RunFolderError: result.json has another AP, segm_AP or PQ than the matches of the last evaluation."""
    result = RunFolder(folder).result()
    expected = _score(result, file)
    if result is not None and not abs(expected - score) <= TOLERANCES[source]:
        found = f"{folder / file.name()}: it has {file.score} {score!r}, result.json {expected!r}"
        raise RunFolderError(f"{found}: of another run; {AGAIN} {folder}")


def refuse_other_ap(folder: RunFolder, ap: float) -> None:
    """RunFolderError: the run is finished, and this evaluation of its checkpoint has another AP than result.json."""
    expected = _score(folder.result(), OF_BOXES) if folder.has_result() else ap
    if not abs(expected - ap) <= TOLERANCES["checkpoint"]:
        raise RunFolderError(
            f"{folder.path}: its checkpoint has AP {ap!r} here, result.json {expected!r}: the checkpoint or the images "
            "are not those of the result; nothing was written"
        )


def wanted_files(result: dict[str, Any] | None) -> list[MatchFile]:
    """Those that a run with this result has: the ones whose score it holds; boxes always."""
    return [file for file in MATCH_FILES if file is OF_BOXES or not math.isnan(_score(result, file))]


def _score(result: dict[str, Any] | None, file: MatchFile) -> float:
    last = (result or {}).get("last")
    return number(last.get(file.score)) if isinstance(last, dict) else math.nan


def _read(folder: Path, name: str, form: type[Form]) -> Form:
    """Those of the last evaluation are checked."""
    found = _read_columns(folder / name, form)
    file = next((one for one in MATCH_FILES if one.name() == name), None)
    if file is not None:
        check_result(folder, found.score, found.source, file)
    return found


def _read_columns(path: Path, form: type[Form]) -> Form:
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
    if columns.keys() != {field.name for field in fields(form)}:
        raise RunFolderError(f"{path}: damaged (it holds {', '.join(columns)}); {AGAIN} {path.parent}")
    return form(**{key: column if column.ndim else column.item() for key, column in columns.items()})
