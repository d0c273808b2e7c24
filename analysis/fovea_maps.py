"""Draw each head's prior over an image, the resulting attention, and the detection.

    python analysis/fovea_maps.py RUN --image ID [--queries 3,7] [--layers -1] [--to fovea.png]
    python analysis/fovea_maps.py CHECKPOINT model=fovea_r50 dynamic_scale=type2 --image photo.jpg --heads apart

RUN is a run folder. ID is the id of a validation image of the run (data.root=DIR if the data has moved), or a file.
Without --queries, the queries of the best detections are drawn. --layers counts from 0, or backwards from -1.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `python analysis/SCRIPT.py`
if find_spec("matplotlib") is None:
    sys.exit("error: figures need matplotlib: pip install -e '.[notebooks]'")

from analysis.figures.fovea_figure import Marked, heads_apart, heads_together
from analysis.figures.models import Picture, open_picture
from analysis.figures.style import PNG_DPI, save
from fovea_detr.boxes import cxcywh_to_xyxy
from fovea_detr.errors import UserError
from fovea_detr.predict.capture import Capture, capture
from fovea_detr.predict.predictor import Predictor, load_run

ENDINGS = (".png", ".pdf", ".svg")
FIGURES = {"together": heads_together, "apart": heads_apart}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw each head's prior and attention over an image.")
    parser.add_argument("source", type=Path, metavar="RUN", help="a run folder, or a checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="the checkpoint's training overrides")
    parser.add_argument("--image", required=True, help="the id of a validation image, or an image file")
    parser.add_argument("--queries", type=_numbers, help="queries, as 3,7 (default: the three best detections)")
    parser.add_argument("--layers", type=_numbers, default=[-1], help="decoder layers, as 0,-1 (default: the last)")
    parser.add_argument("--heads", choices=tuple(FIGURES), default="together", help="in one panel, or in one each")
    parser.add_argument("--to", type=Path, default=Path("fovea.png"), help=f"{', '.join(ENDINGS)} (default: fovea.png)")
    parser.add_argument("--dpi", type=int, default=PNG_DPI, help=f"pixels per inch of a .png (default: {PNG_DPI})")
    options = parser.parse_intermixed_args(_joined(sys.argv[1:] if arguments is None else arguments))
    try:
        if options.to.suffix not in ENDINGS:
            raise UserError(f"--to {options.to}: the file name must end in one of {', '.join(ENDINGS)}")
        view = open_view(options.source, options.image, options.overrides)
        marked = view.marked(options.queries or view.best_queries())
        figure = FIGURES[options.heads](view.capture, view.image, marked, view.layers(options.layers))
        save(figure, options.to, options.dpi)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if view.capture.layers[0].log_prior is None:
        print("plain DETR has no prior: only its attention is drawn")
    print(f"{options.to}: {'; '.join(one.title for one in marked)}")
    return 0


@dataclass(frozen=True)
class View:
    """An image and what the model computed on it."""

    picture: Picture
    predictor: Predictor
    capture: Capture

    @property
    def image(self) -> np.ndarray:
        """[h, w, 3] uint8, as stored."""
        return self.picture.original.permute(1, 2, 0).numpy()

    def best_queries(self, count: int = 3) -> list[int]:
        """The `count` queries with the highest scores, best first, one per object (NMS at IoU 0.5)."""
        boxes_xyxy = cxcywh_to_xyxy(self.capture.predictions.boxes_cxcywh[-1, 0])
        return nms(boxes_xyxy, torch.from_numpy(self._scores().max(axis=1)), 0.5)[:count].tolist()

    def marked(self, queries: Sequence[int]) -> list[Marked]:
        """The queries with their detections: the last layer's box in pixels and the best class. Raises UserError."""
        scores, names = self._scores(), self.predictor.trained.names or self.picture.names
        for query in queries:
            if not 0 <= query < len(scores):
                raise UserError(f"--queries {query}: the model has queries 0 to {len(scores) - 1}")
        size_whwh = np.tile(self.image.shape[1::-1], 2)
        boxes_xyxy = cxcywh_to_xyxy(self.capture.predictions.boxes_cxcywh[-1, 0]).numpy() * size_whwh
        best = scores.argmax(axis=1).tolist()
        return [
            Marked(q, f"query {q}: {names.get(best[q], f'class {best[q]}')} {scores[q, best[q]]:.2f}", boxes_xyxy[q])
            for q in queries
        ]

    def layers(self, numbers: Sequence[int]) -> list[int]:
        """Layer numbers counted from 0; negative ones count from the end. Raises UserError."""
        count = len(self.capture.layers)
        for number in numbers:
            if not -count <= number < count:
                raise UserError(f"--layers {number}: the decoder has layers 0 to {count - 1}, or -1 to {-count}")
        return [number % count for number in numbers]

    def _scores(self) -> np.ndarray:
        """Class scores of the last layer [Q, classes], without the no-object class."""
        logits = self.capture.predictions.logits[-1, 0]
        is_focal = self.capture.predictions.activation == "sigmoid"
        return (logits.sigmoid() if is_focal else logits.softmax(-1)[:, :-1]).numpy()


def open_view(source: Path | str, image: str, overrides: Sequence[str] = ()) -> View:
    """A run folder (or a checkpoint and its overrides) and an image -> the data to draw. Raises UserError."""
    predictor = load_run(source, overrides, device="cpu")
    picture = open_picture(predictor, image)
    return View(picture, predictor, capture(predictor.model, picture.batch))


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--layers -2,-1` as one word: argparse would take `-2,-1` for an option."""
    words = list(arguments)
    while "--layers" in words[:-1]:
        at = words.index("--layers")
        words[at : at + 2] = [f"--layers={words[at + 1]}"]
    return words


if __name__ == "__main__":
    sys.exit(main())
