"""What the header of an image file says: its orientation and its upright size. Imports no torch."""

from __future__ import annotations

import struct
from pathlib import Path

from PIL import ExifTags, Image

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)  # of PIL


def orientation(image: Image.Image) -> int:
    """1 (upright) to 8, as in EXIF; 1 where the file has none that can be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except UNREADABLE:
        return 1
    return value if value in range(1, 9) else 1


def upright_hw(path: Path) -> tuple[tuple[int, int], int]:
    """(height, width) after the orientation is applied, and the orientation. Reads the header; raises UNREADABLE."""
    with Image.open(path) as image:
        turned = orientation(image)
        return (image.size if turned >= 5 else image.size[::-1]), turned


def size_mismatch(size_hw: tuple[int, int], path: Path) -> str | None:
    """What a message says of a file of another size than the annotated one. Raises UNREADABLE."""
    found_hw, turned = upright_hw(path)
    if found_hw == size_hw:
        return None
    found, wanted = (f"{width} x {height}" for height, width in (found_hw, size_hw))
    if turned == 1:
        return f"{path}: {found} pixels on disk, but {wanted} in the annotations; get the right image"
    upright = f"{found} pixels once its EXIF orientation {turned} is applied, but {wanted} in the annotations"
    return f"{path}: {upright}; annotate the upright image, or remove the orientation"
