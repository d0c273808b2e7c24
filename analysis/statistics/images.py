"""The paired bootstrap over the images of the validation split: 1000 resamples of each run from its matches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RESAMPLES = 1000
SEED = 0


@dataclass(frozen=True)
class Resamples:
    """Of one run: B resamples. The same resample has the same images in every run of the same split."""

    values: dict[str, np.ndarray]  # [B] by metric
    by_category: dict[str, np.ndarray]  # [B] AP by category; NaN where a resample has no object of it
    split: str  # equal for runs that can be paired


def resamples_of(
    runs: Sequence[Path],
    metrics: Sequence[str],
    cache: Path,
    number: int = RESAMPLES,
    seed: int = SEED,
    progress: Callable[[Path], object] = lambda _: None,
) -> dict[Path, Resamples]:
    """The resamples of each run folder that has matches; the others are left out.

    cache: a folder, the study's; its files are named by the content of the matches. progress: called after each run.
    RunFolderError: matches that are not of the run's result.json.
    """
    raise NotImplementedError
