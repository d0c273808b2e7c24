"""What a resample of the images needs of one evaluation, in the run folder: which detection found something, and where.

Read with numpy alone; written by `python -m fovea_detr.evaluation` and by the evaluation that ends a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

FILE = "matches.npz"
VERSION = 1
AREAS = ("all", "small", "medium", "large")
ERRORS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")  # TIDE's


@dataclass(frozen=True)
class Matches:
    """K categories, A areas, T IoU thresholds, N images; D detections of all categories, M pairs of image and category.

    The detections of category k are at starts[k]:starts[k + 1], in COCOeval's order: best score first. Bit t of
    `matched` and `ignored` is of the IoU threshold t; a detection that is ignored is never matched.
    """

    image_ids: np.ndarray  # [N] int64, ascending; the index of an image is its place here
    categories: dict[int, str]  # K names by id, ascending
    ious: np.ndarray  # [T] float64
    starts: np.ndarray  # [K + 1] int64
    images: np.ndarray  # [D] index of the image
    matched: np.ndarray  # [A, D] uint16
    ignored: np.ndarray  # [A, D] uint16
    object_images: np.ndarray  # [M] index of the image
    object_categories: np.ndarray  # [M] index of the category
    objects: np.ndarray  # [A, M] how many objects count there
    errors: dict[str, float]  # dAP50 by TIDE's error types, a fraction
    ap: float  # the evaluator's
    source: str  # evaluation | predictions | checkpoint


def write_matches(folder: Path, matches: Matches, name: str = FILE) -> None:
    """Write them into a run folder."""
    raise NotImplementedError


def read_matches(folder: Path) -> Matches:
    """The matches of a run's last evaluation. RunFolderError: there are none, or they are not of its result.json."""
    raise NotImplementedError
