"""Published results by configuration, from published.yaml. Imports no torch; names no axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from analysis.reading.runs import Run
from analysis.reading.settings import read_settings
from fovea_detr.runs.settings import Settings, as_typed, defaults

FILE = Path(__file__).parent / "published.yaml"
# What may differ: names (the leaves below them count), the seed, and how often is evaluated and in which batches. The
# batch of a process is not compared either, because the total batch is.
FREE = {"model", "schedule", "seed", "schedule.batch_size", "schedule.total_batch", "weights"}
CLASSES = {"data.num_classes": ("null", "91")}  # of COCO; null: not read from the annotations yet
ANY = "any"  # the source does not say
TOTAL_BATCH = range(16, 33)


@dataclass(frozen=True)
class Published:
    """where: settings as text that are not at their default. metrics: fractions. checkpoint: start of its sha256."""

    where: dict[str, str]
    metrics: dict[str, float]
    source: str
    checkpoint: str | None = None

    def holds(self, settings: Settings) -> bool:
        """Whether the whole configuration is the published one."""
        if any(settings.get(key, value) != value for key, value in self.where.items() if value != ANY):
            return False
        everything = {**defaults(), **self.where, "mode": settings.get("mode", "")}
        expected = read_settings(everything)
        compared = {
            key for key in expected.keys() | settings.keys() if key not in FREE and not key.startswith("evaluation.")
        }
        return compared <= expected.keys() and all(
            expected[key] == ANY or settings.get(key) in (*CLASSES.get(key, ()), expected[key]) for key in compared
        )

    def fits(self, settings: Settings, runs: Sequence[Run]) -> bool:
        """Whether every run trained with the published total batch, or evaluates the published checkpoint."""
        if settings.get("mode") == "eval":
            return all(self.is_evaluated_by(run) for run in runs)
        batches = [run.numbers["total_batch"] for run in runs if "total_batch" in run.numbers]
        return settings.get("weights", "null") == "null" and all(batch in TOTAL_BATCH for batch in batches)

    def is_evaluated_by(self, run: Run) -> bool:
        """Whether the run evaluates the published checkpoint: by its content or, if that is unknown, by its name."""
        content = str(run.provenance.get("weights_sha256") or "")
        name = Path(run.settings.get("weights", "")).stem.rpartition("-")[2]
        return self.checkpoint is not None and (content or name).startswith(self.checkpoint)


@cache
def entries() -> list[Published]:
    content = yaml.safe_load(FILE.read_text())
    return [
        Published(
            {key: as_typed(value) for key, value in entry["where"].items()},
            {name: value / 100 for name, value in entry["metrics"].items()},
            entry["source"],
            entry.get("checkpoint"),
        )
        for entry in content["published"]
    ]


def published_for(settings: Settings, runs: Sequence[Run]) -> Published | None:
    """For a row's settings and its runs, all of which must be as published."""
    return next((entry for entry in entries() if entry.holds(settings) and entry.fits(settings, runs)), None)
