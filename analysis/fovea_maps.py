"""The figure of the paper: each head's Gaussian over an image, the attention that comes of it, and the detection.

    python analysis/fovea_maps.py RUN --image ID [--queries 3,7] [--layers -1] [--to fovea.png]
    python analysis/fovea_maps.py CHECKPOINT model=fovea_r50 dynamic_scale=type2 --image photo.jpg --heads apart

RUN is a run folder. An image is a file, or an id of the run's validation images (data.root=DIR, if they have moved).
Without --queries, those of the best detections. --layers counts decoder layers from 0, or from -1 backwards.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import nms

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script has its own folder there, not `analysis`
if find_spec("matplotlib") is None:
    sys.exit("error: figures are drawn with matplotlib: pip install -e '.[notebooks]'")

from analysis.figures.fovea_figure import Marked, heads_apart, heads_together
from analysis.figures.looking import Look, look
from analysis.figures.models import Picture, open_model, open_picture
from analysis.figures.style import PNG_DPI, save
from fovea_detr.boxes import cxcywh_to_xyxy
from fovea_detr.errors import UserError

ENDINGS = (".png", ".pdf", ".svg")
FIGURES = {"together": heads_together, "apart": heads_apart}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Each head's Gaussian and attention over an image.")
    parser.add_argument("source", type=Path, metavar="RUN", help="a run folder, or a checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what the checkpoint was trained with")
    parser.add_argument("--image", required=True, help="an id of the validation images, or an image file")
    parser.add_argument("--queries", type=_numbers, help="3,7: which queries (default: the three best detections)")
    parser.add_argument("--layers", type=_numbers, default=[-1], help="0,-1: which decoder layers (default: the last)")
    parser.add_argument("--heads", choices=tuple(FIGURES), default="together", help="in one panel, or a panel each")
    parser.add_argument("--to", type=Path, default=Path("fovea.png"), help="a .png, .pdf or .svg (default: fovea.png)")
    parser.add_argument("--dpi", type=int, default=PNG_DPI, help=f"pixels per inch of a .png (default: {PNG_DPI})")
    options = parser.parse_intermixed_args(_joined(sys.argv[1:] if arguments is None else arguments))
    try:
        if options.to.suffix not in ENDINGS:
            raise UserError(f"--to {options.to}: a figure is one of {', '.join(ENDINGS)}")
        view = open_view(options.source, options.image, options.overrides)
        marked = view.marked(options.queries or view.best_queries())
        figure = FIGURES[options.heads](view.look, view.image, marked, view.layers(options.layers))
        save(figure, options.to, options.dpi)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if view.look.layers[0].log_prior is None:
        print("this is plain DETR: it has no prior, so its attention is drawn alone")
    print(f"{options.to}: {'; '.join(one.title for one in marked)}")
    return 0


@dataclass(frozen=True)
class View:
    """A picture, and what the model does with it."""

    picture: Picture
    look: Look

    @property
    def image(self) -> np.ndarray:
        """[h, w, 3] uint8, as on disk."""
        return self.picture.original.permute(1, 2, 0).numpy()

    def best_queries(self, count: int = 3) -> list[int]:
        """The queries of the highest scores, best first; of queries that found the same object (IoU > 0.5) the best."""
        boxes_xyxy = cxcywh_to_xyxy(self.look.predictions.boxes_cxcywh[-1, 0])
        return nms(boxes_xyxy, torch.from_numpy(self._scores().max(axis=1)), 0.5)[:count].tolist()

    def marked(self, queries: Sequence[int]) -> list[Marked]:
        """Those queries with their detections: the last layer's box in pixels and their best class."""
        scores, names = self._scores(), self.picture.categories
        for query in queries:
            if not 0 <= query < len(scores):
                raise UserError(f"--queries {query}: the model's queries are 0 to {len(scores) - 1}")
        height, width = self.image.shape[:2]
        boxes_xyxy = cxcywh_to_xyxy(self.look.predictions.boxes_cxcywh[-1, 0]).numpy() * (width, height, width, height)
        best = scores.argmax(axis=1).tolist()
        return [
            Marked(q, f"query {q}: {names.get(best[q], f'class {best[q]}')} {scores[q, best[q]]:.2f}", boxes_xyxy[q])
            for q in queries
        ]

    def layers(self, numbers: Sequence[int]) -> list[int]:
        """Layers counted from 0, also where they were counted from the end."""
        count = len(self.look.layers)
        for number in numbers:
            if not -count <= number < count:
                raise UserError(f"--layers {number}: the decoder's layers are 0 to {count - 1}, or -1 to {-count}")
        return [number % count for number in numbers]

    def _scores(self) -> np.ndarray:
        """[Q, classes]"""
        logits = self.look.predictions.logits[-1, 0]
        is_focal = self.look.predictions.activation == "sigmoid"
        return (logits.sigmoid() if is_focal else logits.softmax(-1)[:, :-1]).numpy()


def open_view(source: Path | str, image: str, overrides: Sequence[str] = ()) -> View:
    """A run folder, or a checkpoint with its overrides, and an image -> everything that is drawn. Raises UserError."""
    config, model = open_model(Path(source), overrides)
    picture = open_picture(config, image)
    return View(picture, look(model, picture.batch))


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--layers -2,-1` as one word: argparse takes a second word that begins with a dash for an option."""
    words = list(arguments)
    while "--layers" in words[:-1]:
        at = words.index("--layers")
        words[at : at + 2] = [f"--layers={words[at + 1]}"]
    return words


if __name__ == "__main__":
    sys.exit(main())
