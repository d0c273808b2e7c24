"""The command that reproduces one run, from its provenance, which for a sweep has the sweep's. Imports no torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from analysis.reading.runs import Run
from analysis.reading.settings import overrides
from fovea_detr.config.overrides import is_several

SWEEP_ONLY = ("-m", "--multirun")


def command(run: Run) -> str | None:
    """As typed in a shell; None if the run folder does not contain it."""
    words = run.provenance.get("command")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return None
    if words and re.fullmatch(r"python[\d.]*t?", words[0]):  # a job submitted to SLURM also records the interpreter
        words = words[1:]
    if not words:
        return None
    script, rest = words[0] if words[0].endswith(".py") else "run.py", words[1:]
    if any(word in SWEEP_ONLY for word in rest):
        point = overrides(run.path.name)
        is_cut = not point and run.path.name != "base"  # the full name was too long for a folder
        rest = None if is_cut else without_sweep(rest, point)
    return None if rest is None else shlex.join(["python", script, *rest])


def without_sweep(words: Sequence[str], point: dict[str, str]) -> list[str] | None:
    """The sweep's arguments for a single point: without launcher options, with the point's value for each axis.

    None if the folder's name does not show which of several values the point has.
    """
    kept, left = [], dict(point)
    for word in words:
        key, equals, value = word.lstrip("+~").partition("=")
        if word in SWEEP_ONLY or key.startswith(("hydra/", "hydra.")):
            continue
        if key in left and equals:
            same = re.sub(r"[^A-Za-z0-9_.=+-]+", "_", value.strip("'\"")) == left[key]  # as in folder names
            word = word if same else f"{key}={left[key]}"
            del left[key]
        kept.append(word)
    kept += [f"{key}={value}" for key, value in left.items()]
    return None if any(is_several(word) for word in kept) else kept
