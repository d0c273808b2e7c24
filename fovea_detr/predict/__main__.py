"""Find objects in pictures with a trained model.

    python -m fovea_detr.predict RUN PICTURES... [--to predictions] [--threshold 0.5] [--fovea]

RUN is a run folder or a checkpoint (with the overrides of its training as --set KEY=VALUE where it does not say them).
PICTURES are files, folders and patterns. Written to --to: each picture with its boxes, names, scores and masks (of a
model that has them); predictions.json, COCO results with the name of each file, boxes as x, y, width, height in pixels,
masks as run lengths (RLE); with --fovea, a
picture for each of the best detections (or of --queries) with the last decoder layer's fovea as a heat map.
Exit code 1: a picture could not be read; the others are done.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from fovea_detr import cli
from fovea_detr.errors import DataError, UserError, tell
from fovea_detr.evaluation.drawing import Mark, blended, draw_boxes
from fovea_detr.evaluation.masks import encoded
from fovea_detr.predict.capture import capture
from fovea_detr.predict.fovea import fovea_heat, overlay
from fovea_detr.predict.pictures import as_pixels, find_pictures
from fovea_detr.predict.predictor import Found, Predictor, load_run

BEST = 3  # detections whose fovea is drawn


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    with cli.one_line_errors():
        pictures = find_pictures(options.pictures)
        check(options)
        predictor = load_run(options.source, options.overrides, device=options.device)
        cli.make_folder(options.to)
        results, failed = [], 0
        for number, (path, name) in enumerate(
            zip(tqdm(pictures, unit="picture", disable=None), names_for(pictures), strict=True), 1
        ):
            try:
                results += predict(predictor, path, options.to / name, number, options)
            except DataError as error:
                failed += 1
                tell(f"error: {error}")
        (options.to / "predictions.json").write_text(json.dumps(results))
    print(f"{options.to}: {len(results)} detections in {len(pictures) - failed} of {len(pictures)} pictures")
    return int(failed > 0)


def parser() -> cli.Parser:
    assert __doc__ is not None
    found = cli.Parser(prog="python -m fovea_detr.predict", description=__doc__)
    found.add_argument("source", metavar="RUN", help="a run folder or a checkpoint")
    found.add_argument("pictures", nargs="+", metavar="PICTURES", help="files, folders, patterns")
    found.add_argument("--to", type=Path, default=Path("predictions"), metavar="DIR", help="default: predictions")
    found.add_argument("--threshold", type=float, default=0.5, help="lowest score, 0..1 (default: 0.5)")
    found.add_argument("--fovea", action="store_true", help="draw the fovea of the best detections, too")
    found.add_argument("--queries", type=numbers, metavar="Q,Q", help="the fovea of these queries instead")
    found.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    found.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return found


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def check(options: Namespace) -> None:
    if not 0 <= options.threshold <= 1:
        raise UserError(f"--threshold {options.threshold}: a score is in 0..1")
    if options.to.exists() and not options.to.is_dir():
        raise UserError(f"--to {options.to}: a file of that name exists; name a folder")


def names_for(pictures: Sequence[Path]) -> list[str]:
    """A file name without ending for each picture: `a`, and `a-2` for another a.jpg or a.png."""
    names: list[str] = []
    for path in pictures:
        name, number = path.stem, 2
        while name in names:
            name, number = f"{path.stem}-{number}", number + 1
        names.append(name)
    return names


def predict(predictor: Predictor, path: Path, to: Path, number: int, options: Namespace) -> list[dict[str, Any]]:
    """Write the files of one picture, `to` with an ending -> its COCO results."""
    pixels = as_pixels(path)
    (found,) = predictor.predict([pixels], options.threshold)
    ground = pixels if found.masks is None else blended(pixels, found.masks, found.labels.tolist())
    draw_boxes(ground, marks(found)).save(f"{to}.jpg", quality=92)
    if options.fovea or options.queries:
        write_foveas(predictor, pixels, found, to, options.queries)
    return results(predictor, found, path, number)


def marks(found: Found) -> list[Mark]:
    rows = zip(found.boxes_xyxy.tolist(), found.names, found.scores.tolist(), found.labels.tolist(), strict=True)
    return [Mark(box, f"{name} {score:.2f}", label) for box, name, score, label in rows]


def results(predictor: Predictor, found: Found, path: Path, number: int) -> list[dict[str, Any]]:
    """COCO results: the data set's own category ids; image_id: the place of the picture on the command line, from 1."""
    rows = zip(found.boxes_xyxy.tolist(), found.labels.tolist(), found.names, found.scores.tolist(), strict=True)
    boxes = [
        {
            "image_id": number,
            "file_name": str(path),
            "category_id": predictor.trained.category_ids.get(label, label),
            "name": name,
            "bbox": [left, top, right - left, bottom - top],
            "score": score,
        }
        for (left, top, right, bottom), label, name, score in rows
    ]
    if found.masks is None or not boxes:
        return boxes
    masks = [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in encoded(found.masks)]
    return [{**one, "segmentation": mask} for one, mask in zip(boxes, masks, strict=True)]


def write_foveas(predictor: Predictor, pixels: Tensor, found: Found, to: Path, queries: list[int] | None) -> None:
    captured = capture(predictor.model, predictor.batch([pixels]).to(predictor.device))
    number = predictor.trained.config.model.num_queries
    if wrong := [query for query in queries or [] if not 0 <= query < number]:
        raise UserError(f"--queries {wrong[0]}: the model has queries 0 to {number - 1}")
    for query in queries or dict.fromkeys(found.queries.tolist()[:BEST]):
        heat = fovea_heat(captured, query, found.size_hw)
        if heat is None:
            tell(f"note: {to.name}: query {query} has no fovea")
            continue
        mine = [mark for mark, one in zip(marks(found), found.queries.tolist(), strict=True) if one == query]
        draw_boxes(overlay(pixels, heat), mine).save(f"{to}-fovea-{query}.jpg", quality=92)


if __name__ == "__main__":
    raise SystemExit(main())
