"""Provenance of a run's numbers: code, packages, device, job, command, data."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = ["torch", "torchvision", "numpy", "scipy", "pandas", "pycocotools", "hotcoco"]
PACKAGES += ["hydra-core", "omegaconf", "submitit"]
JOB_VARIABLES = ["SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT"]
CODE_DIR = Path(__file__).resolve().parent.parent.parent
SNAPSHOT_FILE = "snapshot.json"


def describe(device: torch.device, world_size: int, total_batch_size: int) -> dict[str, Any]:
    """The facts about this process and its machine; the caller adds data and weights."""
    import torch  # only here: a sweep reads the code's version without torch

    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": json.loads(os.environ.get("FOVEA_COMMAND", "null")) or sys.argv,  # a job's: the sweep's command
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "world_size": world_size,
        "total_batch_size": total_batch_size,
        "job": {name: os.environ[name] for name in JOB_VARIABLES if name in os.environ},
        "code": code_version(CODE_DIR),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def code_version(folder: Path) -> dict[str, str | None]:
    """The git commit of the code and a hash of what is not committed; both None where there is no git checkout.

    A snapshot holds those of the checkout that it was taken from, at that time.
    """
    frozen = folder / SNAPSHOT_FILE
    if frozen.exists():
        facts = json.loads(frozen.read_text())
        return {"sha": facts["sha"], "uncommitted": facts["uncommitted"]}
    sha = _git(folder, "rev-parse", "HEAD")
    if sha is None:
        return {"sha": None, "uncommitted": None}
    changes = (_git(folder, "diff", "HEAD") or "") + "".join(_new_files(folder))
    return {"sha": sha.strip(), "uncommitted": hashlib.sha256(changes.encode()).hexdigest()[:16] if changes else ""}


def _new_files(folder: Path) -> Iterator[str]:
    """Names and fingerprints of files that git neither tracks nor ignores, such as a new axis before `git add`."""
    names = _git(folder, "ls-files", "-z", "--others", "--exclude-standard") or ""
    for name in filter(None, names.split("\0")):
        path = folder / name
        yield f"{name} {file_fingerprint(path) if path.is_file() else ''}\n"


def file_fingerprint(path: Path | str) -> str:
    """sha256 of a file's content, 16 hex digits."""
    digest = hashlib.sha256()
    with Path(path).expanduser().open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, errors="replace")
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
