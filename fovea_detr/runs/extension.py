"""`extend=N`: a run that goes on, to epoch N, from the final state of the same run without it. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fovea_detr.config.schema import Config
from fovea_detr.errors import RunFolderError
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.points import Folders


def origin_of(config: Config, folder: RunFolder) -> RunFolder | None:
    """The folder whose final state this run begins with; None if it extends none, or has a state of its own already.

    Raises RunFolderError if that run is not there, is not done, or has lost its checkpoint.
    """
    if config.extend is None or folder.has_result() or folder.checkpoint_path.exists():
        return None
    study = Path(config.runs) / config.study
    name = Folders(study).name("", replace(config, extend=None))
    origin = RunFolder(study / name)
    if not name or not origin.has_result():
        found = f"{origin.path} is not done" if name else f"{study} has no run of this configuration without extend"
        raise RunFolderError(f"extend={config.extend}: {found}: first run the same command without extend to its end")
    if not origin.checkpoint_path.exists():
        raise RunFolderError(
            f"extend={config.extend}: {origin.checkpoint_path} is gone: there is no state to go on from"
        )
    return origin
