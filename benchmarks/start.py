"""Start and memory at COCO's scale and of the tiny set: from the command to the first batch, first and second start.

    python -m benchmarks.start [--ranks 4] [--workers 4] [--root FOLDER] [--only ours-first ...]

118,287 + 5,000 images (links to one tiny jpeg) and 860,001 + 36,781 objects with polygons are made once below --root.
Both sides load both splits in every rank, shuffle, and run worker processes: ours as torchrun starts run.py, the
published way with torchvision's CocoDetection and torch's DataLoader, as DETR's main.py does. CPU seconds and memory
(proportional set size: a shared page counts once) are those of the whole process tree. The start of ours ends when the
data, the model and the ranks are ready, that of the published way when its workers are. The first start parses the
annotations and stores them below data.cache (of `tiny`: generates the images), the second one finds them
there: name both with --only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

SIZES = {"train": (118_287, 860_001), "val": (5_000, 36_781)}
STEADY_SECONDS = 3.0
TICKS = os.sysconf("SC_CLK_TCK")


def make(root: Path) -> None:
    """The data set, if it is not there."""
    rnd = random.Random(0)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split, (images, objects) in SIZES.items():
        path = root / "annotations" / f"instances_{split}2017.json"
        if path.is_file():
            continue
        content = {
            "images": list(_images(root / f"{split}2017", images)),
            "annotations": [_annotation(rnd, number, images) for number in range(1, objects + 1)],
            "categories": [{"id": i, "name": f"class {i}", "supercategory": "any"} for i in range(1, 91)],
        }
        path.write_text(json.dumps(content))


def _images(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """At most 30,000 links to one file: file systems limit them."""
    folder.mkdir(exist_ok=True)
    for number in range(1, count + 1):
        path = folder / f"{number:012d}.jpg"
        if number % 30_000 == 1:
            first = path
            Image.new("RGB", (64, 48)).save(first)
        elif not path.exists():
            os.link(first, path)
        yield {"id": number, "file_name": path.name, "width": 64, "height": 48, "license": 1, "coco_url": "x" * 60}


def _annotation(rnd: random.Random, number: int, images: int) -> dict[str, Any]:
    x, y, width, height = (round(rnd.uniform(1, 24), 2) for _ in range(4))
    polygon = [round(rnd.uniform(0, 64), 2) for _ in range(40)]
    return {
        "id": number,
        "image_id": rnd.randint(1, images),
        "category_id": rnd.randint(1, 90),
        "bbox": [x, y, width, height],
        "area": width * height,
        "iscrowd": 0,
        "segmentation": [polygon],
    }


TINY = ["experiment=tiny", "device=cpu", "threads=1"]
LIKE_TINY = [*TINY, "data=coco", "data.recipe=tiny", "schedule.batch_size=1"]


def ours(ranks: int, runs: str, cache: str, overrides: list[str]) -> list[str]:
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    return [sys.executable, *launcher, "run.py", *overrides, f"data.cache={cache}", f"runs={runs}"]


def published(root: Path, ranks: int, workers: int) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}"]
    return [*launcher, "-m", "benchmarks.plain.loader", str(root), str(workers)]


def measure(command: list[str], started: str, running: str) -> dict[str, float]:
    """Until the log contains `started`: CPU and wall seconds, peak GB; once it contains `running`: GB."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FOVEA_LOCAL": ""}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        begin, peak, cpu, wall = time.monotonic(), 0.0, 0.0, 0.0
        try:
            while running not in (text := _read(log)):
                if process.poll() is not None or time.monotonic() - begin > 600:
                    raise RuntimeError(f"{' '.join(command)}: no {running!r}: {text[-2000:]}")
                if started not in text:
                    cpu, wall = sum(_cpu_seconds(pid) for pid in tree(process.pid)), time.monotonic() - begin
                peak = max(peak, sum(_memory_gb(pid) for pid in tree(process.pid)))
                time.sleep(0.2)
            time.sleep(STEADY_SECONDS)
            steady = sum(_memory_gb(pid) for pid in tree(process.pid))
        finally:
            for pid in tree(process.pid):  # torchrun's ranks have sessions of their own
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
    return {"cpu_s": cpu, "wall_s": wall, "peak_gb": peak, "steady_gb": steady}


def _read(log: Any) -> str:
    log.seek(0)
    return log.read()


def tree(root: int) -> list[int]:
    """A process and all below it."""
    found, parents = [root], {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _memory_gb(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1e6
    return 0.0


def _cpu_seconds(pid: int) -> float:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    return 0.0


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--root", type=Path, default=Path(".cache/coco_scale"))
    parser.add_argument("--only", nargs="+", default=[], help="ours-first ours-second tiny-first tiny-second published")
    options = parser.parse_args()
    ranks, workers, root = options.ranks, options.workers, options.root.absolute()
    if not all(name.startswith("tiny") for name in options.only or ["ours"]):
        make(root)
    print(f"{ranks} ranks x {workers} workers; CPU seconds and GB of the whole process tree")
    with tempfile.TemporaryDirectory() as folder:
        for name, command, started, running in commands(Path(folder), root, ranks, workers):
            if not options.only or name in options.only:
                found = measure(command, started, running)
                line = "  ".join(f"{key} {value:.1f}" for key, value in found.items())
                print(f"{name:<12} {line}", flush=True)


def commands(folder: Path, root: Path, ranks: int, workers: int) -> Iterator[tuple[str, list[str], str, str]]:
    """Name, command, and what its log says when the start ends, and when it trains."""
    coco = [*LIKE_TINY, f"data.root={root}", f"data.workers={workers}"]
    for kind, processes, overrides in (("ours", ranks, coco), ("tiny", 1, TINY)):
        for start in ("first", "second"):
            command = ours(processes, str(folder / f"{kind}-{start}"), str(folder / f"{kind}-cache"), overrides)
            yield f"{kind}-{start}", command, "trainable parameters", "worst batch"
    text = "all ranks have a batch"
    yield "published", published(root, ranks, workers), text, text


if __name__ == "__main__":
    main()
