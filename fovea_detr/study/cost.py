"""What a sweep will cost, as far as it is known before."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fovea_detr.config.schema import Config
from fovea_detr.study.manifest import Point

GPU_HOURS_PER_EPOCH = 4.0  # on COCO: 30 minutes on 8 V100, published for the fovea with R50


def cost_lines(points: Sequence[Point]) -> list[str]:
    """The estimated cost of some points."""
    known = [hours for point in points if (hours := hours_by_schedule(point.config)) is not None]
    unknown = len(points) - len(known)
    guess = f"{sum(known):g} GPU-hours by schedule (30 minutes an epoch of COCO on 8 V100)"
    if unknown:
        guess += f", and {unknown} point{'s' if unknown > 1 else ''} of unknown length"
    if all(point.config.device == "cpu" for point in points):
        guess = "no GPU-hours (device=cpu)"
    lines = [f"cost: {guess}"]
    if all("timeout_min" in point.resources for point in points):
        lines.append(f"at most {sum(map(hours_at_most, points)):g} GPU-hours until the time limit of the first start")
        several = [point for point in points if starts(point) > 1]
        if several:
            most = max(several, key=starts)
            limit = most.resources["timeout_min"] / 60
            lines.append(
                f"{len(several)} of {len(points)} points are longer than their time limit and are requeued: about "
                f"{starts(most)} starts of {limit:g} h for {most.config.last_epoch} epochs"
            )
    return lines


def hours_by_schedule(config: Config) -> float | None:
    """GPU-hours of a run from its schedule; None where the time of an epoch is not known."""
    if config.device == "cpu":
        return 0.0
    if config.data.name != "coco" or config.mode != "train":
        return None
    before = config.schedule.epochs if config.extend else 0
    return GPU_HOURS_PER_EPOCH * (config.last_epoch - before)


def hours_at_most(point: Point) -> float:
    """GPU-hours at most until the time limit of one start."""
    cluster = point.config.cluster
    return 0.0 if point.config.device == "cpu" else cluster.nodes * cluster.gpus * point.resources["timeout_min"] / 60


def starts(point: Point) -> int:
    """How often the run will start, by its schedule; 1 where that is not known."""
    hours, most = hours_by_schedule(point.config) or 0.0, hours_at_most(point)
    return max(1, math.ceil(hours / most)) if most else 1
