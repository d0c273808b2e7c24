"""Published results by configuration, from published.yaml. Imports no torch; names no axis."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from fovea_detr.runs.identity import Settings, as_typed

FILE = Path(__file__).parent / "published.yaml"


@dataclass(frozen=True)
class Published:
    """where: settings as text. metrics: fractions, as in a run's result."""

    where: dict[str, str]
    metrics: dict[str, float]
    source: str


@cache
def entries() -> list[Published]:
    content = yaml.safe_load(FILE.read_text())
    return [
        Published(
            {key: as_typed(value) for key, value in entry["where"].items()},
            {name: value / 100 for name, value in entry["metrics"].items()},
            entry["source"],
        )
        for entry in content["published"]
    ]


def published_for(settings: Settings) -> Published | None:
    for entry in entries():
        if all(settings.get(key) == value for key, value in entry.where.items()):
            return entry
    return None
