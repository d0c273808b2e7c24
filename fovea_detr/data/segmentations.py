"""The masks of an annotation file: polygons and run lengths (RLE), kept as text, rasterised when an image is read.

Text, because lists of numbers would take ten times the memory, and a copy in every worker process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import pycocotools.mask

from fovea_detr.data.columns import fields
from fovea_detr.data.flaws import Flaws
from fovea_detr.data.image_table import Images

coco_mask: Any = pycocotools.mask  # its type hints know no lists

# What is wrong with a mask, as a message names it.
ABSENT = "objects without a mask (segmentation)"
SHORT = "objects with a polygon of fewer than three points"
FARTHEST = 100_000  # pixels; pycocotools takes minutes for a polygon that reaches 10^8, and ends the process at 10^12
FAR = f"objects with a polygon that reaches beyond {FARTHEST} pixels"
EMPTY = "objects whose mask is empty run lengths (RLE)"
OTHER_SIZE = "objects whose run lengths (RLE) have another size than their image"
MALFORMED = "objects whose mask is neither polygons nor run lengths (RLE)"
Rle = dict[str, Any]  # size [h, w], counts bytes: as pycocotools has it


class RunLengths(msgspec.Struct):
    counts: str | list[int]
    size: tuple[int, int]


# Numbers in strings are converted, as those of boxes are.
PARSER = msgspec.json.Decoder(list[list[float]] | RunLengths | None, strict=False)


@dataclass(frozen=True)
class Segmentations:
    """The masks of A objects. text: JSON, that of object i at starts[i]:ends[i]. An index selects objects, as in numpy.

    sizes_hw: [A, 2] int64 pixels, of the objects' images.
    """

    text: bytes
    starts: np.ndarray  # [A] int64
    ends: np.ndarray  # [A] int64
    sizes_hw: np.ndarray
    give_boxes = False
    are_kept = True

    @classmethod
    def read(cls, entries: list[Any], rows: np.ndarray, images: Images, _: Flaws) -> Segmentations:
        """Of annotations, whose images are at these rows."""
        return cls.of(fields(entries, "segmentation"), images.sizes_hw[rows])

    @classmethod
    def of(cls, values: Sequence[Any], sizes_hw: np.ndarray) -> Segmentations:
        """values: of each object, JSON as text (msgspec.Raw) or as Python has it; None: it has none."""
        texts = [bytes(one) if isinstance(one, msgspec.Raw) else msgspec.json.encode(one) for one in values]
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return cls(b"".join(texts), ends - [len(text) for text in texts], ends, sizes_hw)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: np.ndarray | slice) -> Segmentations:
        return replace(self, starts=self.starts[rows], ends=self.ends[rows], sizes_hw=self.sizes_hw[rows])

    def rles(self) -> Iterator[Rle]:
        """The mask of each object, rasterised by pycocotools. Of objects without a flaw."""
        for found, (height, width) in zip(self._parsed(), self.sizes_hw.tolist(), strict=True):
            yield _rle(found, height, width)

    def drawn(self, size_hw: tuple[int, int]) -> np.ndarray:
        """[A, h, w] bool, of the objects of one image of this size."""
        return decoded(list(self.rles()), size_hw)

    def flaws(self) -> list[str]:
        """What is wrong with each mask; nothing for most."""
        sizes = self.sizes_hw.tolist()
        return [_flaw(found, height, width) for found, (height, width) in zip(self._parsed(), sizes, strict=True)]

    def _parsed(self) -> Iterator[list[list[float]] | RunLengths | msgspec.ValidationError | None]:
        view = memoryview(self.text)
        for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True):
            try:
                yield PARSER.decode(view[start:end])
            except msgspec.ValidationError as error:
                yield error


def decoded(rles: Sequence[Rle], size_hw: tuple[int, int]) -> np.ndarray:
    """[T, h, w] bool."""
    if not rles:
        return np.zeros((0, *size_hw), bool)
    return np.ascontiguousarray(coco_mask.decode(rles).transpose(2, 0, 1)).view(bool)


def _rle(found: Any, height: int, width: int) -> Rle:
    if isinstance(found, list):
        return coco_mask.merge(coco_mask.frPyObjects(found, height, width))
    if isinstance(found.counts, list):
        return coco_mask.frPyObjects({"size": [height, width], "counts": found.counts}, height, width)
    return {"size": [height, width], "counts": found.counts.encode()}


def _flaw(found: Any, height: int, width: int) -> str:
    if isinstance(found, RunLengths):
        return _flaw_of_runs(found, height, width)
    if not found:
        return ABSENT
    if isinstance(found, Exception) or any(len(polygon) % 2 for polygon in found):
        return MALFORMED
    if any(len(polygon) < 6 for polygon in found):
        return SHORT  # four numbers, pycocotools takes for a box
    return FAR if any(max(polygon) > FARTHEST or min(polygon) < -FARTHEST for polygon in found) else ""


def _flaw_of_runs(found: RunLengths, height: int, width: int) -> str:
    if found.size != (height, width):
        return OTHER_SIZE
    try:
        counts = found.counts if isinstance(found.counts, list) else _counts(found.counts)
    except ValueError:
        return MALFORMED
    if not sum(counts[1::2]):
        return EMPTY
    return MALFORMED if min(counts) < 0 or sum(counts) != height * width else ""


def _counts(text: str) -> list[int]:
    """COCO's compressed run lengths: signed numbers, 5 bits a character, from the third on the change to the last but
    one. ValueError: it is cut off, or has other characters.
    """
    counts, value, shift = [], 0, 0
    for bits in (ord(character) - 48 for character in text):
        if not 0 <= bits < 64:
            raise ValueError(text)
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise ValueError(text)
    return counts
