"""result.json, history.jsonl and provenance.json -> numbers by name, and facts as text. Imports no torch."""

from __future__ import annotations

import math
from typing import Any

from fovea_detr.runs.folder import METRICS
from fovea_detr.runs.state import number


def read_numbers(history: list[dict[str, Any]], result: dict[str, Any], provenance: dict[str, Any]) -> dict[str, float]:
    """Metrics and cost by name, without NaN. The metrics are those of the last evaluation, after epoch `at_epoch`."""
    line = history[-1] if history else {}
    timing = node_of(line.get("timing"))
    evaluations = [line for line in history if not math.isnan(score(line.get("AP")))]
    evaluated = evaluations[-1] if evaluations else {}
    scores, best = node_of(result.get("last", evaluated)), node_of(result.get("best"))
    if not result:
        best = max(evaluations, key=lambda line: score(line["AP"]), default={})
    epochs = number(result.get("epochs", line.get("epoch")))
    found = {name: score(scores.get(name)) for name in METRICS}
    found |= {
        "best_AP": score(best.get("AP")),
        "best_epoch": number(best.get("epoch")),
        "at_epoch": epochs if result else number(evaluated.get("epoch")),
        "epochs": epochs,
        "total_batch": number(result.get("total_batch_size", provenance.get("total_batch_size"))),
        "gpu_hours": number(result.get("gpu_hours", timing.get("gpu_hours"))),
        "minutes": number(result.get("minutes", number(timing.get("total_seconds")) / 60)),
        "images_per_second": number(result.get("images_per_second", timing.get("images_per_second"))),
        "inference_ms": 1000 * number(result.get("inference_seconds")),
        "parameters": number(result.get("parameters")),
    }
    return {name: value for name, value in found.items() if not math.isnan(value)}


def score(value: Any) -> float:
    """A metric; NaN for COCO's -1, which means that the data set has no such object."""
    value = number(value)
    return math.nan if value < 0 else value


def node_of(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def read_facts(numbers: dict[str, float], precision: str | None, provenance: dict[str, Any]) -> dict[str, str]:
    """Total batch, precision, data and code as short texts; unknown ones are left out."""
    batch = numbers.get("total_batch")
    data, code = provenance.get("data"), provenance.get("code")
    facts = {"total batch": f"{batch:.0f}" if batch is not None else "", "precision": precision or ""}
    if isinstance(data, dict):
        facts["data"] = " ".join(f"{name} {str(data[name])[:8]}" for name in sorted(data))
    if isinstance(code, dict) and code.get("sha"):
        changes = code.get("uncommitted")
        facts["code"] = f"{str(code['sha'])[:7]}{f' + changes {str(changes)[:4]}' if changes else ''}"
    return {name: value for name, value in facts.items() if value}
