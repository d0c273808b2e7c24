"""Make the matches of runs that have none, for the statistics of the table.

    python -m fovea_detr.evaluation matches RUN [RUN ...] [--root DIR] [--device auto]

RUN is a finished run folder. They are made from its predictions.json, else by an evaluation of its checkpoint, which
takes as long as one between two epochs. Their AP must be that of result.json. Exit code 2: a run has none now; the
others are done.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fovea_detr.cli import Parser
from fovea_detr.data.readers import READERS
from fovea_detr.errors import RunFolderError, UserError, tell
from fovea_detr.evaluation.coco import DetectionTable, GroundTruth, coco_metrics
from fovea_detr.evaluation.matches import Matches, check_result, read_matches, write_matches
from fovea_detr.evaluation.matching import matches_of
from fovea_detr.runs.folder import MATCHES, RunFolder
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
    """Write the matches of a finished run, and print what was done. RunFolderError, DataError."""
    path = folder.path
    if not folder.has_result():
        raise RunFolderError(f"{path}: no result.json: it is no finished run; finish it first")
    if (path / MATCHES).exists():
        read_matches(path)
        print(f"{path}: has its matches")
        return
    if (path / "predictions.json").exists():
        matches = of_predictions(folder, root)
    elif folder.checkpoint_path.exists():
        matches = of_checkpoint(folder, root, device)
    else:
        raise RunFolderError(f"{path}: neither predictions.json nor checkpoint.pt: its matches cannot be made")
    check_result(path, matches.ap, matches.source)
    write_matches(folder, matches)
    print(f"{path}: matches made from its {matches.source}, AP {matches.ap:.4f}")


def of_predictions(folder: RunFolder, root: str | None) -> Matches:
    config = Stored(folder.config_text() or "").config()
    data = replace(config.data, root=root or config.data.root)
    split = READERS[data.name](data, "val")
    refuse_other_data(folder, {"val": split.fingerprint}, data.root)
    truth = GroundTruth(split.ground_truth(), config.evaluation.backend)
    table = table_of(json.loads((folder.path / "predictions.json").read_text()))
    return matches_of(truth, table, coco_metrics(truth, table)["AP"], "predictions")


def table_of(results: Sequence[dict]) -> DetectionTable:
    """A COCO results file as a table, in its order."""
    image_ids = torch.tensor([one["image_id"] for one in results], dtype=torch.int64)
    rows = [[*one["bbox"], one["score"], one["category_id"]] for one in results]
    return DetectionTable(image_ids, torch.tensor(rows, dtype=torch.float64).reshape(-1, 6))


def of_checkpoint(folder: RunFolder, root: str | None, device: str) -> Matches:
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
        return replace(read_matches(found), source="checkpoint")


if __name__ == "__main__":
    sys.exit(main())
