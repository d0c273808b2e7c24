"""Run folders -> three tidy pandas tables: per run, per run and epoch, and per run and category.

Reads only run folders, finished or not, and never imports torch. A folder that cannot be read is left out and named in
`problems`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from analysis.reading.outcome import score
from analysis.reading.settings import SEED
from analysis.reading.variants import name_variants, varying_keys
from fovea_detr.errors import UserError
from fovea_detr.runs.folder import METRICS, RunFolder
from fovea_detr.runs.identity import Settings, settings_of

UNREADABLE = (OSError, ValueError, yaml.YAMLError, TypeError, AttributeError, KeyError)
CPUS = {"x86_64", "amd64", "aarch64", "arm64", "ppc64le", "riscv64", "i686"}  # any other `device` is a GPU's name


@dataclass(frozen=True)
class Tables:
    """runs: study, run, variant, seed, is_early, state, epochs, minutes, gpu_hours, metrics, and each varying setting.

    epochs: study, run, variant, seed, is_early, epoch, minutes and gpu_hours so far, images_per_second, losses and
    metrics. categories: study, run, variant, seed, category, AP. is_early: before the learning-rate drop, or before the
    end of a cosine schedule. gpu_hours: NaN without a GPU. Metrics: NaN where COCO gives -1 (undefined).
    problems: one line per folder left out.
    """

    runs: pd.DataFrame
    epochs: pd.DataFrame
    categories: pd.DataFrame
    problems: list[str]


class _Run(NamedTuple):
    """The parsed content of one folder: an invalid folder fails here, before any table is built."""

    path: Path
    settings: dict[str, str]
    seed: int
    is_early: bool
    facts: dict[str, Any]
    epochs: list[dict[str, Any]]
    ap_by_category: dict[str, float]


def read(root: Path | str, studies: Sequence[str] = ()) -> Tables:
    """Every run of these studies; of all studies if none is named. Raises UserError if there is no run."""
    root, runs, problems = Path(root), [], []
    for path in _points(root, studies):
        try:
            run = _read_run(path)
        except UNREADABLE as error:
            problems.append(f"{path}: left out, cannot be read: {' '.join(str(error).split())[:120]}")
            continue
        if run is not None:
            runs.append(run)
    if not runs:
        where = f"{root} ({', '.join(studies)})" if studies else str(root)
        raise UserError(f"no runs in {where}: runs are in RUNS/STUDY/POINT; start one, or name another folder of runs")
    return _tables(runs, problems)


def _points(root: Path, studies: Sequence[str]) -> list[Path]:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name the one that holds the studies")
    present = _folders(root)
    names = [Path(study).name for study in studies]
    for name in names:
        if name not in [path.name for path in present]:
            raise UserError(f"no study {name} in {root}; there is {', '.join(p.name for p in present) or 'none'}")
    return [point for study in present if not names or study.name in names for point in _folders(study)]


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _read_run(path: Path) -> _Run | None:
    """None if there is no config.yaml: not a run, or a run that has not started yet."""
    folder = RunFolder(path)
    text = folder.config_text()
    if text is None:
        return None
    settings, history, result = settings_of(text), folder.history(), folder.result() or {}
    gpus = _gpus(result, folder.provenance() or {})
    # The last evaluation: in the result or, while the run is unfinished, in the history.
    scores = result.get("last") or next((line for line in reversed(history) if "AP" in line), {})
    minutes = result.get("minutes", _minutes(history[-1]) if history else math.nan)
    state = "done" if result else folder.record().get("state", "queued")
    metrics = {"AP": math.nan} | {name: score(scores[name]) for name in METRICS if name in scores}
    facts = {"state": state, "epochs": len(history), **_cost(minutes, gpus), **metrics}
    epochs = [
        {"epoch": line["epoch"], **_cost(_minutes(line), gpus), "images_per_second": _rate(line)}
        | {name: score(value) if name in METRICS else value for name, value in _numbers(line).items()}
        for line in history
    ]
    categories = {name: score(ap) for name, ap in (scores.get("AP_by_category") or {}).items()}
    is_early = _is_early(settings, len(history))
    return _Run(path, settings, int(settings.get(SEED, "0")), is_early, facts, epochs, categories)


def _gpus(result: dict[str, Any], provenance: dict[str, Any]) -> int:
    if result.get("minutes"):
        return round(result.get("gpu_hours", 0) * 60 / result["minutes"])
    return 0 if str(provenance.get("device", "")).lower() in CPUS else int(provenance.get("world_size", 0))


def _cost(minutes: float, gpus: int) -> dict[str, float]:
    return {"minutes": minutes, "gpu_hours": minutes / 60 * gpus if gpus else math.nan}


def _is_early(settings: Settings, epochs: int) -> bool:
    if settings["mode"] == "eval":
        return False
    if settings["schedule.kind"] == "step":
        return epochs <= int(settings["schedule.lr_drop"])
    return epochs < int(settings["schedule.epochs"])


def _minutes(line: dict[str, Any]) -> float:
    return float(line.get("timing", {}).get("total_seconds", math.nan)) / 60


def _rate(line: dict[str, Any]) -> float:
    return float(line.get("timing", {}).get("images_per_second", math.nan))


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    """Losses, metrics and other numbers of one epoch, without its number."""
    return {
        name: value
        for name, value in line.items()
        if name != "epoch" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _tables(runs: Sequence[_Run], problems: list[str]) -> Tables:
    settings = [run.settings for run in runs]
    several = len({run.path.parent for run in runs}) > 1
    names = [run.path.name for run in runs]
    labels, keys = name_variants(settings, names), varying_keys(settings, names)
    heads = [
        {
            "study": run.path.parent.name,
            "run": run.path.name,
            "variant": f"{run.path.parent.name}: {label}" if several else label,
            "seed": run.seed,
            "is_early": run.is_early,
        }
        for run, label in zip(runs, labels, strict=True)
    ]
    pairs = list(zip(heads, runs, strict=True))
    per_run = pd.DataFrame([h | run.facts | {key: run.settings.get(key) for key in keys} for h, run in pairs])
    per_epoch = [h | line for h, run in pairs for line in run.epochs]
    epochs = pd.DataFrame(
        per_epoch,
        columns=None if per_epoch else [*heads[0], "epoch", "minutes", "gpu_hours", "images_per_second", "AP"],
    )
    per_category = [{**h, "category": name, "AP": ap} for h, run in pairs for name, ap in run.ap_by_category.items()]
    categories = pd.DataFrame(per_category, columns=[*heads[0], "category", "AP"])
    twice = per_run[per_run.duplicated(["variant", "seed"])]
    problems = [
        *problems,
        *(f"{run.study}/{run.run}: equal to another run, counted twice" for run in twice.itertuples()),
    ]
    return Tables(per_run, epochs, categories, problems)
