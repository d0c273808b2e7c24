"""The published value of a configuration, if there is one: published.yaml, which is data. No torch, no axis by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from fovea_detr.runs.identity import Settings, as_typed

FILE = Path(__file__).parent / "published.yaml"


@dataclass(frozen=True)
class Published:
    """where: leaves as text. metrics: as fractions, like a run's own."""

    where: dict[str, str]
    metrics: dict[str, float]
    source: str


@lru_cache(maxsize=1)
def entries(file: Path = FILE) -> list[Published]:
    content = yaml.safe_load(file.read_text())
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
