"""What a column of masks must do: `Segmentations` (polygons, run lengths) and `Pngs` (panoptic segments) do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from fovea_detr.data.flaws import Flaws
from fovea_detr.data.image_table import Images


class Masks(Protocol):
    """The masks of A objects. An index selects objects, as in numpy; nothing is rasterised or decoded before `drawn`.

    give_boxes: the boxes of the objects come from their masks. are_kept: the masks are wanted, not the boxes alone.
    """

    @property
    def give_boxes(self) -> bool: ...

    @property
    def are_kept(self) -> bool: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray | slice, /) -> Masks: ...

    def drawn(self, size_hw: tuple[int, int]) -> np.ndarray:
        """[A, h, w] bool, of the objects of one image of this size. DataError: they cannot be read."""
        ...

    def flaws(self) -> list[str]:
        """What is wrong with each: a kind of flaw, in the plural; empty for most."""
        ...


# Of annotations, the rows of their images, the images: -> their masks. Lists the flaws of files.
MaskReader = Callable[[list[Any], np.ndarray, Images, Flaws], Masks]
