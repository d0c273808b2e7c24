"""Style of the figures: colour-blind safe colours, reproducible files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fovea_detr.runs.files import write_atomic

# Okabe and Ito, "Color Universal Design" (2008), with grey in place of yellow, which is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
COLUMN_INCHES = 3.4  # one column of a two-column paper
PAGE_INCHES = 7.0  # both columns
PNG_DPI = 220
ENDINGS = (".pdf", ".svg", ".png")
RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,  # embed text as text
    "svg.fonttype": "none",
    "svg.hashsalt": "fovea_detr",  # reproducible files
}


@contextmanager
def house_style() -> Iterator[None]:
    with matplotlib.rc_context(RC):
        yield


def new_figure(width: float = COLUMN_INCHES, height: float = 2.4, padding: float | None = None) -> Figure:
    """A figure in inches. Made without pyplot: no window, no global state, and notebooks show it once."""
    engine = ConstrainedLayoutEngine() if padding is None else ConstrainedLayoutEngine(compress=True)
    if padding is not None:
        engine.set(w_pad=padding, h_pad=padding, wspace=0, hspace=0)
    return Figure(figsize=(width, height), layout=engine)


def line_styles(variants: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, dash and marker of each variant; the first 32 combinations are distinct."""
    count = len(COLOURS)
    return {
        variant: {
            "color": COLOURS[i % count],
            "linestyle": DASHES[i // count % len(DASHES)],
            "marker": MARKERS[i % len(MARKERS)],
        }
        for i, variant in enumerate(variants)
    }


def save(figure: Figure, path: Path, dpi: int = PNG_DPI) -> None:
    """Write .pdf, .svg or .png atomically; equal figures give equal files."""
    options: dict[str, Any] = {
        ".pdf": {"metadata": {"CreationDate": None, "ModDate": None}},
        ".svg": {"metadata": {"Date": None}},
    }
    content = io.BytesIO()
    with house_style():
        figure.savefig(content, format=path.suffix[1:], dpi=dpi, **options.get(path.suffix, {}))
    write_atomic(path, lambda file: file.write(content.getvalue()))
