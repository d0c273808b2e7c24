"""What a column of masks must do: `Segmentations` (polygons, run lengths) and `Pngs` (panoptic segments) do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from fovea_detr.data.flaws import Flaws
from fovea_detr.data.image_table import Images
from fovea_detr.data.samples import Sample


class Masks(Protocol):
    """The masks of A objects. An index selects objects, as in numpy; nothing is rasterised or decoded before `added`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray | slice, /) -> Masks: ...

    def added(self, sample: Sample) -> Sample:
        """The image of these objects with their masks. DataError: they cannot be read."""
        ...

    def flaws(self) -> list[str]:
        """What is wrong with each: a kind of flaw, in the plural; empty for most."""
        ...


# Of annotations, the rows of their images, the images: -> their masks. Lists the flaws of files.
MaskReader = Callable[[list[Any], np.ndarray, Images, Flaws], Masks]
