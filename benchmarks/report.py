"""The table of `make bench`: one row per measurement, compared with the earlier prototype, printed and stored."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pillow", "pycocotools", "hotcoco")
NO_REASON = "below the prototype, without a reason"


@dataclass
class Row:
    """plain, ours: in `unit`; ratio: how many times better ours is; prototype: the prototype's ratio, to be reached or
    explained in `below`. memory: peak MiB, plain and ours. target: the required ratio; limit: the maximum of ours.
    skipped, failed: why it was not measured."""

    part: str
    plain: float | None = None
    ours: float | None = None
    unit: str = ""
    ratio: float | None = None
    note: str = ""
    prototype: float | None = None
    below: str = ""
    memory: list[float] = field(default_factory=list)
    memory_prototype: float | None = None
    target: float | None = None
    limit: float | None = None
    skipped: str = ""
    failed: str = ""

    @property
    def memory_ratio(self) -> float | None:
        return self.memory[1] / self.memory[0] if self.memory else None

    def is_below(self) -> bool:
        """Whether ratio or memory is worse than the prototype's in the printed digits."""
        slower = self.ratio is not None and self.prototype is not None and round(self.ratio, 2) < self.prototype
        larger = self.memory_ratio is not None and self.memory_prototype is not None
        return slower or (larger and round(self.memory_ratio or 0.0, 2) > (self.memory_prototype or 0.0))

    def wrong(self) -> str:
        """The failure, or the target or limit that is missed; else an empty text."""
        if self.failed:
            return f"{self.part}: {self.failed}"
        if self.target is not None and self.ratio is not None and self.ratio < self.target:
            return f"{self.part}: {self.ratio:.2f} times better, the target is {self.target:g}"
        if self.limit is not None and self.ours is not None and self.ours > self.limit:
            return f"{self.part}: {self.ours:g}, the limit is {self.limit:g}"
        return ""

    def notes(self) -> str:
        reason = (self.below or NO_REASON) if self.is_below() else ""
        skipped = f"skipped: {self.skipped}" if self.skipped else ""
        wrong = f"WRONG: {self.wrong()}" if self.wrong() else ""
        return "; ".join(filter(None, (skipped, self.note, reason, wrong)))


HEAD = (
    "part",
    "plain",
    "ours",
    "",
    "times better",
    "prototype",
    "peak MiB plain",
    "ours",
    "share",
    "prototype",
    "note",
)


def number(value: float | None) -> str:
    if value is None:
        return ""
    if value == float("inf"):
        return "all"
    return f"{value:.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:.3g}"


def cells(row: Row) -> list[str]:
    found = [row.part, number(row.plain), number(row.ours), row.unit, number(row.ratio), number(row.prototype)]
    peaks = [number(peak) for peak in row.memory] or ["", ""]
    share = "" if row.memory_ratio is None else f"{row.memory_ratio:.2f}"
    return [*found, *peaks, share, number(row.memory_prototype), row.notes()]


def markdown(rows: list[Row]) -> str:
    lines = [cells(row) for row in rows]
    widths = [max(len(line[i]) for line in [list(HEAD), *lines]) for i in range(len(HEAD))]
    widths[-1] = 4  # do not pad notes

    def line(texts: list[str], fill: str = " ") -> str:
        return "| " + " | ".join(text.ljust(width, fill) for text, width in zip(texts, widths, strict=True)) + " |"

    return "\n".join([line(list(HEAD)), line([""] * len(HEAD), "-"), *map(line, lines)])


def machine() -> dict[str, Any]:
    """Hardware, versions, date and command, without the machine's name."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in PACKAGES},
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "-m", "benchmarks.bench", *sys.argv[1:]]),
    }


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def store(path: Path, rows: list[Row], growth: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write path.md and path.json; path has no suffix. The figure of `growth` is path.png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    where = f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} thread(s)"
    where += f", {facts['gpu']}" if facts["gpu"] else ", no GPU"
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
    text = f"# {path.name}\n\n{where}; Python {facts['python']}, {versions}; {facts['date']}.\n\n"
    text += f"`{facts['command']}`; plain is the published formulation, implemented in benchmarks/plain/.\n\n"
    text += markdown(rows) + "\n"
    if growth:
        text += f"\n![How cost grows with cells, queries, images and ranks]({path.name}.png)\n"
    path.with_suffix(".md").write_text(text)
    content = {"machine": facts, "rows": [asdict(row) for row in rows], "growth": growth}
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
