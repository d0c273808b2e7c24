"""Check a data set: list every flaw of its annotations, without training.

    python -m fovea_detr.data check ROOT [--data NAME] [--masks] [--val-fraction SHARE] [--max-flawed SHARE] [--full]

ROOT is what data.root would be, NAME what data would be (coco, or a reader of your own). Exit code 0: no flaws, or only
ones that are corrected on reading (small clips and the like); 1: flawed objects are left out or clipped, fewer than
--max-flawed; 2: training would be refused.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import get_args

from fovea_detr.cli import Parser
from fovea_detr.config.schema import GENERATED, Data
from fovea_detr.data.annotations import CocoSplit
from fovea_detr.data.categories import merge_names
from fovea_detr.data.coco import CocoDataset, check_images
from fovea_detr.data.readers import READERS, SplitName
from fovea_detr.data.transforms import eval_transform
from fovea_detr.errors import DataError


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    data = Data(options.data, options.root, options.panoptic_root, options.masks)
    data.val_fraction, data.max_flawed = options.val_fraction, options.max_flawed
    found = [check(data, split, full=options.full) for split in get_args(SplitName)]
    sys.exit(max(check_classes(split for split, _ in found), *(code for _, code in found)))


def parser() -> Parser:
    assert __doc__ is not None
    whole = Parser(prog="python -m fovea_detr.data", description=__doc__)
    verb = whole.add_subparsers(dest="verb", required=True, metavar="check").add_parser("check")
    verb.add_argument("root", metavar="ROOT")
    readers = sorted({*READERS} - GENERATED)
    verb.add_argument("--data", choices=readers, default=Data.name, help="the reader (default: %(default)s)")
    verb.add_argument(
        "--val-fraction", type=float, default=0.0, help="data.val_fraction, for a data set with one annotation file"
    )
    verb.add_argument(
        "--max-flawed", type=float, default=Data.max_flawed, help="share of the objects, 0..1 (default: %(default)s)"
    )
    verb.add_argument("--masks", action="store_true", help="also the masks of the objects")
    verb.add_argument("--panoptic-root", metavar="DIR", help="data.panoptic_root, with --data coco_panoptic")
    verb.add_argument("--full", action="store_true", help="also decode every image")
    return whole


def check(data: Data, name: SplitName, *, full: bool) -> tuple[CocoSplit | None, int]:
    """Print the report on one split -> the split, if it can be read, and the exit code."""
    try:
        split = READERS[data.name](data, name)
        report(name, split)
        if full:
            check_images(CocoDataset(split, eval_transform(data.recipe)))
    except DataError as error:
        print(f"{name}: refused: {error}")
        return None, 2
    if split.flaws.refusal(data.max_flawed):
        print(f"{name}: refused{'' if split.flaws.are_fatal else f' with data.max_flawed={data.max_flawed:g}'}")
        return split, 2
    return split, int(split.flaws.share > 0)


def check_classes(splits: Iterable[CocoSplit | None]) -> int:
    """Print where the categories of the two splits disagree -> the exit code."""
    try:
        train, val = (split.categories if split else {} for split in splits)
        merge_names(train, val)
    except DataError as error:
        print(f"refused: {error}")
        return 2
    return 0


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
