"""Make the matches of runs that have none, for the statistics of the table.

    python -m fovea_detr.evaluation matches RUN [RUN ...] [--root DIR] [--device auto]

RUN is a finished run folder. Those of boxes are made from its predictions.json, of masks from predictions_segm.json, of
panoptic segments from predictions_panoptic.json and its PNGs; where one is missing, by an evaluation of the checkpoint,
which takes as long as one between two epochs. Their AP, segm_AP or PQ must be that of result.json. Exit code 2: a run
lacks some now; the others are done.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fovea_detr.cli import Parser
from fovea_detr.data.readers import READERS
from fovea_detr.errors import RunFolderError, UserError, tell
from fovea_detr.evaluation.coco import DetectionTable, GroundTruth, metrics_of
from fovea_detr.evaluation.matches import (
    MATCHES,
    OF_MASKS,
    OF_SEGMENTS,
    Matches,
    MatchFile,
    Segments,
    check_result,
    wanted_files,
    write_matches,
)
from fovea_detr.evaluation.matching import matches_of
from fovea_detr.evaluation.quality import PanopticMap, PanopticTruth
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.identity import refuse_other_data
from fovea_detr.runs.stored import Stored


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    failed = 0
    for run in options.runs:
        try:
            make(RunFolder(run), options.root, options.device)
        except UserError as error:
            failed += 1
            tell(f"error: {error}")
    return 2 if failed else 0


def parser() -> Parser:
    assert __doc__ is not None
    whole = Parser(prog="python -m fovea_detr.evaluation", description=__doc__)
    verb = whole.add_subparsers(dest="verb", required=True, metavar="matches").add_parser("matches")
    verb.add_argument("runs", nargs="+", metavar="RUN", type=Path)
    verb.add_argument("--root", metavar="DIR", help="where the data set is now (default: as the run had it)")
    verb.add_argument("--device", default="auto", help="for a checkpoint: auto, cpu or cuda")
    return whole


def make(folder: RunFolder, root: str | None, device: str) -> None:
    """Write the matches that a finished run lacks, and print what was done. RunFolderError, DataError."""
    path = folder.path
    if not folder.has_result():
        raise RunFolderError(f"{path}: no result.json: it is no finished run; finish it first")
    lacking = []
    for file in wanted_files(folder.result()):
        try:
            file.read(path)
            print(f"{path}: has its {file.name()}")
        except RunFolderError:  # missing, damaged or of another run
            lacking.append(file)
    stored = [file for file in lacking if all((path / name).exists() for name in file.predictions)]
    if stored:
        write(folder, of_predictions(folder, root, stored))
    evaluated = [file for file in lacking if file not in stored]
    if evaluated and not folder.checkpoint_path.exists():
        missing = ", ".join(file.predictions[0] for file in evaluated)
        names = ", ".join(file.name() for file in evaluated)
        raise RunFolderError(f"{path}: neither {missing} nor checkpoint.pt: its {names} cannot be made")
    if evaluated:
        write(folder, of_checkpoint(folder, root, device, evaluated))


def write(folder: RunFolder, made: Mapping[MatchFile, Matches | Segments]) -> None:
    """RunFolderError, before anything is written: one of them is not of the run's result."""
    for file, matches in made.items():
        check_result(folder.path, matches.score, matches.source, file)
    for file, matches in made.items():
        write_matches(folder, matches, file.name())
        print(f"{folder.path}: {file.name()} made from its {matches.source}, {file.score} {matches.score:.4f}")


def of_predictions(
    folder: RunFolder, root: str | None, files: Sequence[MatchFile]
) -> dict[MatchFile, Matches | Segments]:
    config = Stored(folder.config_text() or "").config()
    data = replace(config.data, root=root or config.data.root)
    split = READERS[data.name](data, "val")
    refuse_other_data(folder, {"val": split.fingerprint}, data.root)
    truth = GroundTruth(split.ground_truth(), config.evaluation.backend)
    panoptic = split.panoptic and PanopticTruth(split.panoptic, split.image_ids.tolist())
    return {file: of_files(file, folder.path, truth, panoptic) for file in files}


def of_files(file: MatchFile, path: Path, truth: GroundTruth, panoptic: PanopticTruth | None) -> Matches | Segments:
    """From the run's predictions; truth, panoptic: of boxes and masks, of segments. RunFolderError: damaged."""
    with refused_if_damaged(path / file.predictions[0]):
        content = json.loads((path / file.predictions[0]).read_text())
        if file is OF_SEGMENTS and panoptic is not None:
            maps = maps_of(content, path / file.predictions[1])
            return panoptic.by_image(maps, panoptic.metrics(maps)[file.score], "predictions")
        kind = "segm" if file is OF_MASKS else "bbox"
        table = table_of(content, kind)
        return matches_of(truth, table, metrics_of(truth, table, kind)["AP"], "predictions", kind)


@contextmanager
def refused_if_damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path}: damaged ({error!r}); remove it, then the checkpoint is evaluated") from error


def table_of(results: Sequence[dict], kind: str = "bbox") -> DetectionTable:
    """A COCO results file as a table, in its order. One of masks (segm) has no boxes: those of the table are empty."""
    image_ids = torch.tensor([one["image_id"] for one in results], dtype=torch.int64)
    boxes = [one["bbox"] if kind == "bbox" else [0, 0, 0, 0] for one in results]
    rows = [[*box, one["score"], one["category_id"]] for box, one in zip(boxes, results, strict=True)]
    table = DetectionTable(image_ids, torch.tensor(rows, dtype=torch.float64).reshape(-1, 6))
    if kind == "bbox":
        return table
    masks = [{**one["segmentation"], "counts": one["segmentation"]["counts"].encode()} for one in results]
    return replace(table, masks=np.array(masks, object))


def maps_of(content: dict[str, Any], pngs: Path) -> list[PanopticMap]:
    """COCO's panoptic results, and the folder of their PNGs."""
    return [
        PanopticMap(one["image_id"], (pngs / one["file_name"]).read_bytes(), one["segments_info"])
        for one in content["annotations"]
    ]


def of_checkpoint(
    folder: RunFolder, root: str | None, device: str, files: Sequence[MatchFile]
) -> dict[MatchFile, Matches | Segments]:
    """By the program itself, as a run with mode=eval in a temporary folder."""
    with tempfile.TemporaryDirectory() as temporary:
        words = ["mode=eval", f"weights='{folder.checkpoint_path.absolute()}'", f"device={device}"]
        words += [f"runs={temporary}", "study=matches", "evaluation.timed_images=1"]
        words += [f"data.root='{Path(root).absolute()}'"] if root else []
        done = subprocess.run([sys.executable, "-m", "fovea_detr", *words], capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RunFolderError(
                f"{folder.path}: its checkpoint could not be evaluated: {last.removeprefix('error: ')}"
            )
        (found,) = (path.parent for path in Path(temporary).glob(f"*/*/{MATCHES}"))
        before, now = ((one.provenance() or {}).get("data", {}).get("val") for one in (folder, RunFolder(found)))
        if before is not None and before != now:
            raise RunFolderError(f"{folder.path}: its validation annotations had the fingerprint {before}, now {now}")
        return {file: replace(file.read(found), source="checkpoint") for file in files}


if __name__ == "__main__":
    sys.exit(main())
