"""A validation set from one annotation file: every image is on one side, by a hash of its name.

An image keeps its side when others are added or removed, and when the ids are numbered anew.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fovea_detr.data.file_names import parts
from fovea_detr.errors import DataError

SplitName = Literal["train", "val"]


@dataclass(frozen=True)
class Holdout:
    """One side of a divided annotation file. fraction: of the images that are validated on, in expectation."""

    split: SplitName
    fraction: float
    seed: int

    def __str__(self) -> str:
        return f"{self.split} part, data.val_fraction={self.fraction!r}, data.split_seed={self.seed}"

    def holds(self, file_name: object) -> bool:
        """Whether this side has the image: sha256 of seed and name, as a number in 0..1, is below the fraction."""
        digest = hashlib.sha256(
            f"{self.seed}:{'/'.join(parts(str(file_name)))}".encode(errors="surrogatepass")
        ).digest()
        return (int.from_bytes(digest[:8], "big") < self.fraction * 2**64) == (self.split == "val")

    def select(self, path: Path, content: Any) -> Any:
        """COCO's dict with the images of this side and their annotations; what has no tables is left as it is.

        An annotation of an image that is in no table stays, on both sides, to be reported. DataError: no image is left.
        """
        images, annotations = (
            content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations")
        )
        if not isinstance(images, list) or not isinstance(annotations, list) or not images:
            return content
        held = [not isinstance(image, dict) or self.holds(image.get("file_name")) for image in images]
        if not any(held):
            raise DataError(
                f"{path}: data.val_fraction={self.fraction} of {len(images)} images leaves none for {self.split}: "
                "choose another data.val_fraction or data.split_seed"
            )
        others = {_id(image.get("id")) for image, mine in zip(images, held, strict=True) if not mine}
        return {
            **content,
            "images": [image for image, mine in zip(images, held, strict=True) if mine],
            "annotations": [
                one for one in annotations if not isinstance(one, dict) or _id(one.get("image_id")) not in others
            ],
        }


def _id(value: object) -> str:
    """Equal for 7, 7.0 and "7": an id may be a number here and a text there."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
