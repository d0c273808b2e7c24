"""The command that makes a run again, alone: out of its provenance, which for a sweep is the sweep's. No torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from analysis.reading.runs import Run
from analysis.reading.settings import overrides

SWEEP_ONLY = ("-m", "--multirun")


def command(run: Run) -> str | None:
    """As it would be typed; None where the folder does not tell it."""
    words = run.provenance.get("command")
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        return None
    script = words[0] if words[0].endswith(".py") else "run.py"
    rest: list[str] | None = list(words[1:])
    if any(word in SWEEP_ONLY for word in words):
        point = overrides(run.path.name)
        is_cut = not point and run.path.name != "base"  # the name was too long for a folder
        rest = None if is_cut else single(words[1:], point)
    return None if rest is None else shlex.join(["python", script, *rest])


def single(words: Sequence[str], point: dict[str, str]) -> list[str] | None:
    """The sweep's words without what made it a sweep; where they name several values, the point's own.

    None if the folder's name does not say which of several values was this run's.
    """
    kept, left = [], dict(point)
    for word in words:
        key, equals, value = word.lstrip("+~").partition("=")
        if word in SWEEP_ONLY or key.startswith(("hydra/", "hydra.")):
            continue
        if key in left and equals:
            same = re.sub(r"[^A-Za-z0-9_.=+-]+", "_", value.strip("'\"")) == left[key]  # as folders are named
            word = word if same else f"{key}={left[key]}"
            del left[key]
        kept.append(word)
    kept += [f"{key}={value}" for key, value in left.items()]
    return None if any(is_several(word) for word in kept) else kept


def is_several(word: str) -> bool:
    """Whether Hydra would make several runs of `key=a,b`. A list or a quoted text is one value."""
    return "," in re.sub(r"\[.*\]|\{.*\}|'.*'|\".*\"", "", word)
