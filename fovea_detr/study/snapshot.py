"""The code as it is at submission: a content-addressed copy of the checkout in the study's folder.

It holds what git tracks with its uncommitted changes and new files that git does not ignore, submodules and nested
clones among them; no data, runs or caches.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from fovea_detr.errors import UserError
from fovea_detr.runs.provenance import CODE_DIR, SNAPSHOT_FILE, GitError, code_version, git, new_files

LEFT_OUT = {".git", ".venv", ".cache", "__pycache__"}  # anywhere; `runs/` is left out at the top only
WITHOUT_GIT = ("run.py", "conf", "sweeps", "fovea_detr", "hydra_plugins", "analysis", "pyproject.toml")
MOST_BYTES = 200 * 2**20


def take(study_folder: Path, code: Path = CODE_DIR, leave_out: Sequence[Path] = ()) -> Path:
    """The folder that holds the code as it is now, created if needed. leave_out: folders of data and results."""
    files = listed(code, leave_out)
    refuse_large(code, files)
    version = code_version(code)
    digest = hashlib.sha256(json.dumps(version, sort_keys=True).encode())
    for name in files:
        digest.update(_identity(code / name, name))
    target = study_folder / ".snapshots" / digest.hexdigest()[:16]
    if not target.is_dir():
        _build(target, code, files, {**version, "files": len(files), "hash": digest.hexdigest()})
    return target


def module(code: Path, name: str) -> str:
    """`fovea_detr.study.NAME` of a snapshot; those of version 0.1 have it in another place."""
    return f"fovea_detr.{'slurm' if (code / 'fovea_detr' / 'slurm').is_dir() else 'study'}.{name}"


def listed(code: Path, leave_out: Sequence[Path] = ()) -> list[str]:
    """Names of the files to copy, relative to the checkout, sorted."""
    names = _git_files(code)
    if f"{Path(__file__).parent.parent.name}/__init__.py" not in names:  # no checkout, or it ignores the package
        names = [str(path.relative_to(code)) for top in WITHOUT_GIT for path in _files_of(code / top)]
    excluded = [os.path.realpath(folder) + os.sep for folder in leave_out]
    return sorted(
        name
        for name in names
        if not LEFT_OUT & set(Path(name).parts)
        and Path(name).parts[0] != "runs"
        and os.path.lexists(code / name)
        and not any((os.path.realpath((code / name).parent) + os.sep).startswith(folder) for folder in excluded)
    )


def refuse_large(code: Path, files: Iterable[str]) -> None:
    sizes = {name: (code / name).lstat().st_size for name in files}
    if sum(sizes.values()) > MOST_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        shown = os.fsencode(code / largest).decode(errors="replace")
        raise UserError(
            f"the code to be copied is {sum(sizes.values()) / 2**20:.0f} MB, most of it {shown} "
            f"({sizes[largest] / 2**20:.0f} MB): add it to .gitignore or move it out of the checkout"
        )


def _build(target: Path, code: Path, files: Sequence[str], facts: dict[str, object]) -> None:
    """Copy into a folder of another name, then rename it: a snapshot is complete or does not exist."""
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
    try:
        umask = os.umask(0o022)
        os.umask(umask)
        for name in files:
            (building / name).parent.mkdir(parents=True, exist_ok=True)
            _copy(code, name, building / name, umask)
        (building / "uncommitted.diff").write_bytes(uncommitted(code))
        (building / SNAPSHOT_FILE).write_text(json.dumps(facts, indent=2) + "\n")
        building.chmod(0o777 & ~umask)
        try:
            building.rename(target)
        except OSError:
            if not target.is_dir():  # another process has created the same one in the meantime
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _copy(code: Path, name: str, target: Path, umask: int) -> None:
    """Copy a file, with the rights of a new one: others of the group run it. A link stays one if it leads inside.

    A link to a file outside becomes that file, whose content may change later; to a folder outside, an absolute link.
    """
    source = code / name
    leads_out = source.is_symlink() and source.exists() and not source.resolve().is_relative_to(code.resolve())
    if leads_out and source.is_dir():
        target.symlink_to(source.resolve())
        return
    shutil.copy2(source, target, follow_symlinks=leads_out)
    if not target.is_symlink():
        target.chmod((0o777 if os.access(source, os.X_OK) and source.stat().st_mode & 0o111 else 0o666) & ~umask)


def _identity(path: Path, name: str) -> bytes:
    """A file's name, kind and content, in an encoding that is unambiguous when files follow each other."""
    if path.is_symlink() and not path.is_file():
        kind, content = b"link", os.fsencode(os.readlink(path))
    else:
        kind = b"program" if os.access(path, os.X_OK) else b"file"
        content = path.read_bytes() if path.is_file() else b""
    return b"\0".join((os.fsencode(name), kind, str(len(content)).encode(), content))


def _files_of(path: Path) -> list[Path]:
    """Files and links of a folder: `fovea_detr/conf` is a link."""
    if not path.is_dir():
        return [path] if path.exists() else []
    return [file for file in path.rglob("*") if file.is_file() or file.is_symlink()]


def _git_files(code: Path) -> list[str]:
    """Tracked and new files. git names a submodule or a nested clone as a folder: its files follow in the same way."""
    found: list[str] = []
    try:
        names = [os.fsdecode(name) for name in (git(code, "ls-files", "-z") or b"").split(b"\0") if name]
        names += new_files(code)
    except GitError:  # `code_version` tells
        return found
    for name in names:
        path = code / name
        if not path.is_dir() or path.is_symlink():
            found.append(name)
        elif (path / ".git").exists():
            found += [os.path.join(name, inner) for inner in _git_files(path)]
    return found


def uncommitted(code: Path) -> bytes:
    """The difference to the last commit; nothing without git, or before the first commit."""
    try:
        return git(code, "diff", "HEAD", "--binary") or b""
    except GitError:
        return b""
