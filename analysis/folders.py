"""Run folders -> runs: what one row of the table is made of, whatever state its folder is in. Imports no torch.

It knows no axis by name: a setting is any leaf of config.yaml, and a node with a `name` is one setting, its name.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fovea_detr.config import is_infrastructure, leaves
from fovea_detr.errors import UserError
from fovea_detr.record import STATES, RunFolder

LOST_SECONDS = 600.0  # a run says every half minute that it is alive; after this long without a word it was killed
FOREIGN = "no run"


@dataclass
class Run:
    """One row. settings: what was run, by key, as text; a group stands there by its name (`model`: fovea_r50)."""

    path: Path
    settings: dict[str, str]
    has_config: bool
    state: str
    numbers: dict[str, float]
    problems: list[str]


def find_runs(root: Path, studies: Sequence[str] = ()) -> list[Run]:
    """Every run of these studies, or of all. Raises UserError, one line, if there is none."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name the one that holds the studies: --runs FOLDER")
    present = [path.name for path in _folders(root)]
    named = list(dict.fromkeys(Path(study).name for study in studies))
    for study in named:
        if study not in present:
            raise UserError(f"no study {study} in {root}; there is {', '.join(present) or 'none'}")
    runs: list[Run] = []
    for study in named or present:
        found = [read_run(path) for path in _folders(root / study)]
        if any(run.state != FOREIGN for run in found):
            runs += found
    if not runs:
        where = ", ".join(str(root / study) for study in named) or str(root)
        raise UserError(f"no runs in {where}: runs are in RUNS/STUDY/POINT; start one, or name RUNS with --runs RUNS")
    _complete_names(runs)
    return runs


def _complete_names(runs: Sequence[Run]) -> None:
    """The settings of runs without a config, read off names such as `smooth=4`, under the key that the others have."""
    known = {key for run in runs if run.has_config for key in run.settings}
    for run in runs:
        if not run.has_config:
            full = {key: [other for other in known if other.endswith(f".{key}")] for key in run.settings.keys() - known}
            run.settings = {(full.get(key) or [key])[0]: value for key, value in run.settings.items()}


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def read_run(path: Path) -> Run:
    """Whatever can be read of a folder; the rest is in `problems`."""
    folder, problems = RunFolder(path), []
    config = _attempt("config.yaml", lambda: _read_config(folder), dict, problems)
    record = _attempt("state.json", folder.state, dict, problems)
    history = _attempt("history.jsonl", folder.history, list, problems) or []
    result = _attempt("result.json", folder.result, dict, problems)
    is_run = bool(problems or config or record or history or result)
    state = describe_state(record or {}, len(history), result is not None, problems) if is_run else FOREIGN
    if not is_run:
        problems.append("no file of a run in this folder")
    elif config is None and state != "queued":
        problems.append("no config.yaml that can be read: its columns are taken from the folder's name")
    settings = overrides(path) if config is None else settings_of(config)
    return Run(path, settings, config is not None, state, read_numbers(history, result or {}), problems)


def _attempt(file: str, read: Callable[[], Any], kind: type, problems: list[str]) -> Any:
    """What `read` returns if it is of the kind, else None. Any error at all: one bad file must not cost the table."""
    try:
        value = read()
        items = value if isinstance(value, list) else []
        if value is None or (isinstance(value, kind) and all(isinstance(item, dict) for item in items)):
            return value
        problems.append(f"{file}: not what a run writes")
    except Exception as error:
        problems.append(f"{file}: cannot be read: {_one_line(str(error).partition(chr(10))[0])}")
    return None


def _read_config(folder: RunFolder) -> Any:
    text = folder.config_text()
    return (text and OmegaConf.to_container(OmegaConf.create(text))) or None


def settings_of(config: dict[str, Any]) -> dict[str, str]:
    settings = {}
    for key, value in leaves(config).items():
        node, _, last = key.rpartition(".")
        if not is_infrastructure(key):
            settings[node if node and last == "name" else key] = _text(value)
    return settings


def overrides(path: Path) -> dict[str, str]:
    """What was set by hand, as the folder's name tells it."""
    return {key: value for key, equals, value in (part.partition("=") for part in path.name.split(",")) if equals}


def describe_state(record: dict[str, Any], epochs: int, has_result: bool, problems: list[str]) -> str:
    """The state in words; a result means done, whatever state.json says."""
    state, epoch, seen = record.get("state"), _number(record.get("epoch")), _number(record.get("time"))
    if has_result:
        return "done"
    if state == "failed":
        return _one_line(f"failed: {record.get('reason', 'no reason given')}")
    if state == "running":
        where = f"running, epoch {(epochs if math.isnan(epoch) else int(epoch)) + 1}"
        silent = time.time() - seen
        return f"lost? {where}, silent for {silent / 60:.0f} min" if silent > LOST_SECONDS else where
    if state in STATES and state != "done":
        return str(state)
    if not problems:
        problems.append("no result.json" if state == "done" else f"state.json: no such state: {_one_line(str(state))}")
    return "broken"


def read_numbers(history: list[dict[str, Any]], result: dict[str, Any]) -> dict[str, float]:
    line = history[-1] if history else {}
    scores = result.get("last") or next((line for line in reversed(history) if "AP" in line), {})
    scores, timing = (node if isinstance(node, dict) else {} for node in (scores, line.get("timing")))
    return {
        "AP": _number(scores.get("AP")),
        "AP50": _number(scores.get("AP50")),
        "epochs": _number(result.get("epochs", line.get("epoch"))),
        "minutes": _number(result.get("minutes", _number(timing.get("total_seconds")) / 60)),
    }


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _text(value: Any) -> str:
    """As it would be typed on the command line."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
