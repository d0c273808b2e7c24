"""result.json, history.jsonl and provenance.json -> numbers by name, and facts as text. Imports no torch."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import Any

from fovea_detr.runs.folder import ALL_METRICS
from fovea_detr.runs.state import number

ON_DEMAND = ("ema_", "val_", "class_error", "cardinality_error")  # numbers that only --columns shows
CPUS = {"x86_64", "amd64", "aarch64", "arm64", "ppc64le", "riscv64", "i686"}  # any other `device` is a GPU's name


def last_scores(history: list[dict[str, Any]], result: dict[str, Any]) -> dict[str, Any]:
    """Of the last evaluation: from the result or, while the run is unfinished, from its history."""
    return node_of(result.get("last", next((line for line in reversed(history) if "AP" in line), {})))


def read_numbers(history: list[dict[str, Any]], result: dict[str, Any], provenance: dict[str, Any]) -> dict[str, float]:
    """Metrics (fractions) and cost by name, without NaN. The metrics are those after epoch `at_epoch`."""
    line = history[-1] if history else {}
    timing = node_of(line.get("timing"))
    scores, best = last_scores(history, result), node_of(result.get("best"))
    evaluations = [line for line in history if not math.isnan(score(line.get("AP")))]
    if not result:
        best = max(evaluations, key=lambda line: score(line["AP"]), default={})
    epochs = number(result.get("epochs", line.get("epoch")))
    found = {name: score(scores.get(name)) for name in ALL_METRICS}
    found |= {name: stored(name, value) for name, value in {**line, **scores}.items() if name.startswith(ON_DEMAND)}
    found |= {
        "best_AP": score(best.get("AP")),
        "best_epoch": number(best.get("epoch")),
        "at_epoch": epochs if result else number(scores.get("epoch")),
        "epochs": epochs,
        "total_batch": number(result.get("total_batch_size", provenance.get("total_batch_size"))),
        "gpu_hours": gpu_hours(result.get("gpu_hours", timing.get("gpu_hours")), provenance),
        "minutes": number(result.get("minutes", number(timing.get("total_seconds")) / 60)),
        "images_per_second": number(result.get("images_per_second", timing.get("images_per_second"))),
        "inference_ms": 1000 * number(result.get("inference_seconds")),
        "peak_gib": number(result.get("peak_memory_bytes")) / 2**30,
        "parameters": number(result.get("parameters")),
    }
    return {name: value for name, value in found.items() if not math.isnan(value)}


def gpu_hours(value: Any, provenance: dict[str, Any]) -> float:
    """NaN for a run on a CPU."""
    is_cpu = str(provenance.get("device", "")).lower() in CPUS
    return math.nan if is_cpu or not number(value) else number(value)


def undefined_scores(scores: dict[str, Any]) -> dict[str, str]:
    """The metrics that are stored and are no score, each with the reason."""
    reasons = {name: score(scores[name]) for name in ALL_METRICS if name in scores}
    return {
        name: "-1: the validation set has no such object" if number(scores[name]) < 0 else f"{scores[name]}"
        for name, value in reasons.items()
        if math.isnan(value)
    }


def score(value: Any) -> float:
    """A metric; NaN for COCO's -1, which means that the data set has no such object."""
    value = number(value)
    return math.nan if value < 0 else value


def stored(name: str, value: Any) -> float:
    """A number of a history or a result; NaN for a metric that is no score, of averaged weights, too."""
    return score(value) if name.removeprefix("ema_") in ALL_METRICS else number(value)


def node_of(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def read_facts(numbers: dict[str, float], precision: str | None, provenance: dict[str, Any]) -> dict[str, str]:
    """Total batch, precision, data by split, code and device as short texts; unknown ones are left out."""
    batch, data = numbers.get("total_batch"), node_of(provenance.get("data"))
    facts = {"total batch": f"{batch:.0f}" if batch is not None else "", "precision": precision or ""}
    facts |= {f"{split} data": str(data[split])[:8] for split in sorted(data)}
    facts["code"] = code_of(provenance)
    if provenance.get("device"):
        facts["device"] = f"{number(provenance.get('world_size', 1)):.0f} x {provenance['device']}"
    return {name: value for name, value in facts.items() if value}


def code_of(provenance: dict[str, Any]) -> str:
    """`0123456 + changes 77`; empty if unknown."""
    code = node_of(provenance.get("code"))
    changes = code.get("uncommitted")
    return f"{str(code['sha'])[:7]}{f' + changes {str(changes)[:4]}' if changes else ''}" if code.get("sha") else ""


def resume_changes(provenance: dict[str, Any]) -> list[str]:
    """What a later start of the run had otherwise than the start before it: `code 0123456 -> fedcba9`."""
    later = provenance.get("later_starts")
    starts = [provenance, *map(node_of, later)] if isinstance(later, list) else []
    parts = [
        {"code": code_of(start), "python": start.get("python"), "device": start.get("device")}
        | {"total batch": start.get("total_batch_size"), **node_of(start.get("packages"))}
        for start in starts
    ]
    known = [{name: value for name, value in part.items() if value} for part in parts]
    known = list(accumulate(known, lambda before, now: before | now))  # a start may not know its code
    changes = [
        f"{name} {before[name]} -> {now[name]}"
        for before, now in pairwise(known)
        for name in before
        if before[name] != now[name]
    ]
    return sorted(dict.fromkeys(changes))
