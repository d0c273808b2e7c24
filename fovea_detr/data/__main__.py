"""Check a data set: list every flaw of its annotations, without training.

    python -m fovea_detr.data check ROOT [--max-flawed SHARE] [--full]

ROOT is what data.root would be. Exit code 0: no flaws, or only ones that are corrected on reading (small clips and the
like); 1: flawed objects are left out or clipped, fewer than --max-flawed; 2: training would be refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from fovea_detr.config.schema import Data
from fovea_detr.data.annotations import CocoSplit
from fovea_detr.data.coco import CocoDataset, check_images
from fovea_detr.data.readers import READERS, SplitName
from fovea_detr.data.transforms import eval_transform
from fovea_detr.errors import DataError


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    data = Data(root=options.root, max_flawed=options.max_flawed)
    sys.exit(max(check(data, split, full=options.full) for split in get_args(SplitName)))


def parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    whole = argparse.ArgumentParser(
        prog="python -m fovea_detr.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verb = whole.add_subparsers(dest="verb", required=True, metavar="check").add_parser("check")
    verb.add_argument("root", metavar="ROOT")
    verb.add_argument(
        "--max-flawed", type=float, default=Data.max_flawed, help="share of the objects, 0..1 (default: %(default)s)"
    )
    verb.add_argument("--full", action="store_true", help="also decode every image")
    return whole


def check(data: Data, name: SplitName, *, full: bool) -> int:
    """Print the report on one split -> the exit code."""
    try:
        split = READERS[data.name](data, name)
        report(name, split)
        if full:
            check_images(CocoDataset(split, eval_transform(data.recipe)))
    except DataError as error:
        print(f"{name}: refused: {error}")
        return 2
    if split.flaws.refusal(data.max_flawed):
        print(f"{name}: refused with data.max_flawed={data.max_flawed:g}")
        return 2
    return int(split.flaws.share > 0)


def report(name: str, split: CocoSplit) -> None:
    """The numbers of the split, and a line for every kind of flaw."""
    crowds, flaws = int(split.objects.is_crowd.sum()), split.flaws
    print(
        f"{name}: {flaws.path}: {len(split.image_ids)} images, {len(split.labels)} objects and {crowds} crowds of "
        f"{len(split.categories)} categories; {flaws.flawed_objects} of {flaws.objects} objects are flawed"
    )
    for flaw in flaws.found:
        print(f"  {flaw}")


if __name__ == "__main__":
    main()
