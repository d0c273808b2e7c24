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
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fovea_detr.errors import tell

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

    problem: why a checkout could not be read, in git's words, only if so.

    A snapshot holds those of the checkout that it was taken from, at that time.
    """
    frozen = folder / SNAPSHOT_FILE
    if frozen.exists():
        facts = json.loads(frozen.read_text())
        return {key: facts[key] for key in ("sha", "uncommitted", "problem") if key in facts}
    try:
        sha = git(folder, "rev-parse", "HEAD")
        if sha is None:
            return {"sha": None, "uncommitted": None}
        changes = git(folder, "diff", "HEAD") or b""
        names = new_files(folder)
    except GitError as error:
        tell(f"warning: {folder}: the code's version is not recorded: {error}")
        return {"sha": None, "uncommitted": None, "problem": str(error)}
    for name in names:
        path = folder / name
        changes += os.fsencode(name) + f" {file_fingerprint(path) if path.is_file() else ''}\n".encode()
    uncommitted = hashlib.sha256(changes).hexdigest()[:16] if changes else ""
    return {"sha": sha.decode().strip(), "uncommitted": uncommitted}


def new_files(folder: Path) -> list[str]:
    """Files that git neither tracks nor ignores, such as a new axis before `git add`; without studies and their runs.

    `runs=results` puts those into the checkout, and they are no code.
    """
    names = [os.fsdecode(name) for name in (git(folder, *NEW_FILES) or b"").split(b"\0") if name]
    studies = {os.path.dirname(name) for name in names if os.path.basename(name) in OF_A_STUDY}
    studies |= {os.path.dirname(os.path.dirname(name)) for name in names if os.path.basename(name) == "state.json"}
    prefixes = tuple(f"{study}/" for study in studies if study)
    return [name for name in names if not name.startswith(prefixes)]


NEW_FILES = ("ls-files", "-z", "--others", "--exclude-standard")
OF_A_STUDY = ("manifest.jsonl", "multirun.yaml")


def file_fingerprint(path: Path | str) -> str:
    """sha256 of a file's content, 16 hex digits."""
    digest = hashlib.sha256()
    with Path(path).expanduser().open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]


class GitError(Exception):
    """git cannot read a checkout."""


def git(folder: Path, *arguments: str) -> bytes | None:
    """git's output; None without git or outside a checkout. GitError, in its words, for everything else.

    A checkout of another user, whose hooks git would not trust, is read, too: the code of this process comes from it.
    Bytes, for names of files have no encoding.
    """
    trusting = ["git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-C", str(folder)]
    try:
        done = subprocess.run([*trusting, *arguments], capture_output=True, env={**os.environ, "LC_ALL": "C"})
    except OSError:
        return None
    if done.returncode == 0:
        return done.stdout
    message = done.stderr.decode(errors="replace")
    if "not a git repository" in message:
        return None
    raise GitError("; ".join(message.strip().splitlines()[:2]) or f"git exits with {done.returncode}")
