"""The sample predictions of each row, small enough to be part of the page. Imports no torch."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from analysis.tables.rows import Row

LONG_SIDE = 480  # pixels
QUALITY = 60  # of JPEG: about 25 kB a picture
MOST_BYTES = 2_000_000  # of all pictures of a page


def pictures(rows: Sequence[Row]) -> dict[str, list[tuple[str, str]]]:
    """By label of the row: (name of the file, data: URI) of the samples of its first run that has some.

    rows: the best first; those from which on the page would become too large, or whose files cannot be read, have none.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    used = 0
    for row in rows:
        files = next((files for run in row.runs if (files := sorted(run.path.glob("samples/*.jpg")))), [])
        made = [(path.stem, uri) for path in files if (uri := as_uri(path))]
        used += sum(len(uri) for _, uri in made)
        if used > MOST_BYTES:
            break
        if made:
            found[row.label] = made
    return found


def as_uri(path: Path) -> str | None:
    """None for a file that cannot be read as an image."""
    small = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.thumbnail((LONG_SIDE, LONG_SIDE))
            image.convert("RGB").save(small, "JPEG", quality=QUALITY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(small.getvalue()).decode()}"
