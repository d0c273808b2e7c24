"""The flaws of an annotation file: all of them, grouped by kind, and whether they can be trained with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from fovea_detr.errors import DataError

EXAMPLES = 3  # of each kind


class Fate(Enum):
    """What happens to the images, categories or objects of a kind of flaw."""

    REFUSED = "refused"
    LEFT_OUT = "left out"  # of training and evaluation; counts towards data.max_flawed
    CLIPPED = "clipped"  # to the image; counts towards data.max_flawed
    KEPT = "kept"  # with the correction that the kind names; does not count


@dataclass(frozen=True)
class Flaw:
    """One kind of flaw. kind: in the plural, as a message names it. examples: at most EXAMPLES."""

    kind: str
    fate: Fate
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        fate = f" {self.fate.value}" if self.fate in (Fate.LEFT_OUT, Fate.CLIPPED) else ""
        return f"{self.kind}: {self.count}{fate} ({', '.join(self.examples)}{more})"


@dataclass
class Flaws:
    """All flaws of one split. objects, images: the numbers of entries in the file, flawed ones included.

    flawed_objects, flawed_images: how many of them are left out or clipped, each counted once.
    """

    path: Path
    objects: int = 0
    images: int = 0
    flawed_objects: int = 0
    flawed_images: int = 0
    found: list[Flaw] = field(default_factory=list)

    def add(self, kind: str, fate: Fate, items: Sequence[Any] | np.ndarray, name: Callable[[Any], str] = str) -> None:
        """items: one for each flaw; the first ones are shown by their names. Nothing is added without any."""
        if len(items):
            examples = tuple(shown(name(item), 240) for item in items[:EXAMPLES])
            self.found.append(Flaw(kind, fate, len(items), examples))

    @property
    def share(self) -> float:
        """The flawed share of the objects or of the images, whichever is larger."""
        return max(self.flawed_objects / max(self.objects, 1), self.flawed_images / max(self.images, 1))

    @property
    def are_fatal(self) -> bool:
        return any(flaw.fate is Fate.REFUSED for flaw in self.found)

    def refusal(self, max_flawed: float) -> str | None:
        """One line with all flaws if the split cannot be used, or if a share above max_flawed is flawed."""
        flaws = "; ".join(map(str, sorted(self.found, key=lambda flaw: flaw.fate is not Fate.REFUSED)))
        if self.are_fatal:
            return f"{self.path}: {flaws}; correct them, or remove their entries"
        if self.share <= max_flawed:
            return None
        many = f"{self.flawed_objects} of {self.objects} objects"
        many += f" and {self.flawed_images} of {self.images} images" if self.flawed_images else ""
        return (
            f"{self.path}: {many} are flawed, more than data.max_flawed={max_flawed:g} allows: {flaws}; correct the "
            f"file, or accept them with data.max_flawed={min(1.0, self.share + 0.0005):.3f}"
        )

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {"kind": flaw.kind, "fate": flaw.fate.value, "count": flaw.count, "examples": list(flaw.examples)}
            for flaw in self.found
        ]


def refuse(splits: Iterable[Flaws], max_flawed: float) -> None:
    """DataError: one of the splits is refused. One line, with the flaws of all of them."""
    refusals = [line for flaws in splits if (line := flaws.refusal(max_flawed))]
    if refusals:
        raise DataError("; ".join(refusals))


def shown(value: Any, longest: int = 60) -> str:
    """A value of the file in a message: on one line, printable, and of that many characters at most."""
    text = " ".join(str(value).split())
    text = text if len(text) <= longest else f"{text[:longest]}..."
    return text.encode("utf-8", "backslashreplace").decode()


def first_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
