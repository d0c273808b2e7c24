"""The classes of a data set: names, the output of the class head for each, and which of a checkpoint's they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fovea_detr.errors import DataError

COCO_CLASSES = 91  # highest category id + 1; the published heads have one output more
SPARSE = 10  # outputs per category, above which ids are numbered anew; a head of COCO's size is never changed


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, over its splits. names: by category id, as in the annotations.

    number: C - 1, as in `data.num_classes`. is_compact: a category's output is its place in the order of the ids;
    otherwise it is the id itself, as published.
    """

    names: dict[int, str]
    number: int
    is_compact: bool = False

    @classmethod
    def of(cls, names: Mapping[int, str], wanted: int | None = None) -> Classes:
        """wanted: `data.num_classes`. Raises DataError if the categories need more."""
        highest = max(names, default=-1)  # without any, the annotations are refused
        is_sparse = highest + 2 > max(SPARSE * len(names), COCO_CLASSES + 1)
        is_compact = min(names, default=0) < 0 or (is_sparse and (wanted is None or wanted <= highest))
        needed = len(names) if is_compact else highest + 1
        if wanted is not None and wanted < needed:
            raise DataError(
                f"data.num_classes={wanted}, but the category ids of the annotations (both splits) need {needed}: "
                "set it to that or more, or leave it out"
            )
        return cls(dict(sorted(names.items())), wanted or needed, is_compact)

    def outputs(self, category_ids: np.ndarray) -> np.ndarray:
        """Category ids -> indices of outputs."""
        return np.searchsorted(list(self.names), category_ids) if self.is_compact else category_ids

    def category_ids(self, outputs: np.ndarray) -> np.ndarray:
        """Indices of outputs -> category ids."""
        return np.array(list(self.names), np.int64)[outputs] if self.is_compact else outputs

    @property
    def by_output(self) -> dict[int, str]:
        """The names by output."""
        return dict(enumerate(self.names.values())) if self.is_compact else self.names

    @property
    def id_by_output(self) -> dict[int, int]:
        """The category ids by output."""
        return dict(enumerate(self.names)) if self.is_compact else {i: i for i in self.names}

    @property
    def has_more_than_needed(self) -> bool:
        """Whether `data.num_classes` was set to more than the categories need."""
        return self.number > max(self.by_output) + 1

    @property
    def labels(self) -> dict[int, str]:
        """A unique name for each category id: `fish (1)` and `fish (2)` where two categories are called fish."""
        count = Counter(self.names.values())
        return {i: name if count[name] == 1 else f"{name} ({i})" for i, name in self.names.items()}


def merge_names(train: Mapping[int, str], val: Mapping[int, str]) -> dict[int, str]:
    """The categories of both splits. Raises DataError, one line, where they give an id or a name another meaning."""
    wrong = [f"id {i} is {train[i]} in train and {val[i]} in val" for i in train if val.get(i, train[i]) != train[i]]
    moved = {name: [[i for i, n in split.items() if n == name] for split in (train, val)] for name in train.values()}
    if not wrong:
        wrong = [f"{n} is id {a[0]} in train and {b[0]} in val" for n, (a, b) in moved.items() if b and not {*a} & {*b}]
    if wrong:
        raise DataError(
            f"the categories of the two annotation files disagree: {some(wrong)}; give each category one id and one "
            "name in both"
        )
    return {**train, **val}


@dataclass(frozen=True)
class ClassMap:
    """Which class of a checkpoint is which of a data set. pairs: output of the checkpoint's head -> key of the data.

    theirs, ours: the names of those without a counterpart.
    """

    by_name: bool  # else by id
    pairs: dict[int, int]
    theirs: list[str] = field(default_factory=list)
    ours: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """One line for the log."""
        lacking = [
            f"no counterpart {where}: {some(names)}"
            for where, names in (("in the data", self.theirs), ("in the checkpoint", self.ours))
            if names
        ]
        how = "by name" if self.by_name else "by id, for there are no names to compare"
        return "; ".join([f"classes: {len(self.pairs)} mapped {how}", *lacking])


def match(theirs: Mapping[int, str] | None, number: int, ours: Mapping[int, str]) -> ClassMap:
    """Map a checkpoint's classes to a data set's: by name; by id if either has no names.

    theirs: names by output, None if the checkpoint has none. If it has COCO's number of classes and the data set COCO's
    names, its names are COCO's. ours: by id (evaluation) or by output (training).
    """
    coco = coco_names()
    if theirs is None and number == COCO_CLASSES and set(ours.values()) & set(coco.values()):
        theirs = coco
    by_name = theirs is not None and not _is_nameless(theirs) and not _is_nameless(ours)
    known = theirs or {}
    pairs = _pairs_by_name(known, ours) if by_name else {i: i for i in ours if i in (theirs or range(number))}
    return ClassMap(
        by_name,
        pairs,
        [name for i, name in known.items() if i not in pairs],
        [name for i, name in ours.items() if i not in pairs.values()],
    )


def coco_names() -> dict[int, str]:
    """COCO's 80 categories by id."""
    from torchvision.models.detection import (
        FasterRCNN_ResNet50_FPN_Weights,
    )  # imports torch, and sweeps read no classes

    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return {i: name for i, name in enumerate(names) if name not in ("__background__", "N/A")}


def some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _is_nameless(names: Mapping[int, str]) -> bool:
    return all(name == str(i) for i, name in names.items())


def _pairs_by_name(theirs: Mapping[int, str], ours: Mapping[int, str]) -> dict[int, int]:
    """Where several have one name, those of equal id."""
    places: dict[str, tuple[list[int], list[int]]] = {}
    for side, names in enumerate((theirs, ours)):
        for i, name in names.items():
            places.setdefault(name, ([], []))[side].append(i)
    pairs: dict[int, int] = {}
    for outputs, keys in places.values():
        alone = len(outputs) == len(keys) == 1
        pairs |= dict(zip(outputs, keys, strict=True)) if alone else {i: i for i in outputs if i in keys}
    return pairs
