"""What a sweep costs, before it is submitted."""

from __future__ import annotations

from collections.abc import Sequence

from fovea_detr.config import Config

GPU_HOURS_PER_EPOCH = 4.0  # on COCO: 30 minutes on 8 V100, published for the fovea with R50


def by_schedule(config: Config) -> float | None:
    """GPU-hours of a run from its schedule; None where nothing is known of the data set or the work."""
    if config.device == "cpu":
        return 0.0
    if config.data.name != "coco" or config.mode != "train":
        return None
    return GPU_HOURS_PER_EPOCH * config.schedule.epochs


def limit(config: Config) -> float:
    """GPU-hours at most until the time limit of one start."""
    cluster = config.cluster
    return 0.0 if config.device == "cpu" else cluster.nodes * cluster.gpus * cluster.hours


def lines(configs: Sequence[Config]) -> list[str]:
    """The bill of some points."""
    known = [hours for config in configs if (hours := by_schedule(config)) is not None]
    unknown = len(configs) - len(known)
    total, most = sum(known), sum(limit(config) for config in configs)
    guess = f"{total:g} GPU-hours by schedule (30 minutes an epoch of COCO on 8 V100)"
    if unknown:
        guess += f", and {unknown} point{'s' if unknown > 1 else ''} whose length is not known beforehand"
    if all(config.device == "cpu" for config in configs):
        guess = "no GPU-hours (device=cpu)"
    return [f"cost: {guess}", f"at most {most:g} GPU-hours until the time limit of the first start"]
