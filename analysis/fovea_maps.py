"""Draw each head's prior over an image, the resulting attention, and the detection.

    python analysis/fovea_maps.py RUN --image ID [--queries 3,7] [--layers -1] [--to fovea.png]
    python analysis/fovea_maps.py CHECKPOINT model=fovea_r50 dynamic_scale=type2 --image photo.jpg --heads apart

RUN is a run folder. ID is the id of a validation image of the run (data.root=DIR if the data has moved), or a file.
Without --queries, the queries of the best detections are drawn. --layers counts from 0, or backwards from -1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `python analysis/SCRIPT.py`

from analysis import script
from analysis.figures.drawing import ENDINGS, PNG_DPI, save
from analysis.figures.fovea_figure import heads_apart, heads_together
from analysis.figures.head_maps import View
from fovea_detr.build import build_data
from fovea_detr.cli import Parser
from fovea_detr.errors import DataError, UserError
from fovea_detr.predict.capture import capture
from fovea_detr.predict.pictures import as_pixels
from fovea_detr.predict.predictor import Predictor, load_run

FIGURES = {"together": heads_together, "apart": heads_apart}


@script.script
def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="RUN", help="a run folder, or a checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="the checkpoint's training overrides")
    parser.add_argument("--image", required=True, help="the id of a validation image, or an image file")
    parser.add_argument("--queries", type=_numbers, help="queries, as 3,7 (default: the three best detections)")
    parser.add_argument("--layers", type=_numbers, default=[-1], help="decoder layers, as 0,-1 (default: the last)")
    parser.add_argument("--heads", choices=tuple(FIGURES), default="together", help="in one panel, or in one each")
    parser.add_argument("--to", type=Path, default=Path("fovea.png"), help=f"{', '.join(ENDINGS)} (default: fovea.png)")
    parser.add_argument("--dpi", type=int, default=PNG_DPI, help=f"pixels per inch of a .png (default: {PNG_DPI})")
    options = parser.parse_intermixed_args(_joined(sys.argv[1:] if arguments is None else arguments))
    if options.to.suffix not in ENDINGS:
        raise UserError(f"--to {options.to}: the file name must end in one of {', '.join(ENDINGS)}")
    view = open_view(options.source, options.image, options.overrides)
    marked = view.marked(options.queries or view.best_queries())
    save(FIGURES[options.heads](view, marked, view.layers(options.layers)), options.to, options.dpi)
    if not view.has_prior:
        print("plain DETR has no prior: only its attention is drawn")
    print(f"{options.to}: {'; '.join(one.title for one in marked)}")


def open_view(source: Path | str, image: str | None, overrides: Sequence[str] = ()) -> View:
    """A run folder (or a checkpoint and its overrides) and an image -> the data to draw. Raises UserError."""
    predictor = load_run(source, overrides, device="cpu")
    original, names = open_image(predictor, image)
    seen = capture(predictor.model, predictor.batch([original]))
    return View(original.permute(1, 2, 0).numpy(), predictor.trained.names or names, seen)


def open_image(predictor: Predictor, image: str | None) -> tuple[Tensor, dict[int, str]]:
    """A file, or an id of the validation split -> [3, h, w] uint8 and the names of its classes, empty for a file.

    None: the first of the validation split. Raises UserError if there is no such image.
    """
    if image is not None and Path(image).is_file():
        return as_pixels(image), {}
    if image is not None and not image.isdigit():
        raise UserError(f"{image}: neither an image file nor the id of a validation image")
    config = predictor.trained.config
    _, val = build_data(replace(config, mode="eval", data=replace(config.data, in_memory=False, check="quick")))
    ids = val.annotations.image_ids.tolist()
    if image is not None and int(image) not in ids:
        raise DataError(f"no image {image} in {val.annotations.path}: the first ids are {', '.join(map(str, ids[:5]))}")
    index = 0 if image is None else ids.index(int(image))
    return val.sample(index).image, val.annotations.classes.by_output


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
