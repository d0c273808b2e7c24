"""`hydra.launcher.wait=true`: stay until every point has ended, and say what each one does when it changes."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from fovea_detr.study.manifest import Manifest
from fovea_detr.study.queue import SlurmError
from fovea_detr.study.status import Standing, adopt, standings

SECONDS = 5.0


def until_ended(manifests: dict[Manifest, list[str]], seconds: float = SECONDS) -> bool:
    """Whether every point has ended done. Ctrl-C leaves the jobs alone and exits with 130."""
    said: dict[tuple[Manifest, str], str] = {}
    try:
        while True:
            now = {(m, s.point): s for m, points in manifests.items() for s in look(m, points)}
            for key, standing in now.items():
                if said.get(key) != (words := describe(standing)):
                    print(f"{time.strftime('%H:%M:%S')} {standing.point}: {words}", flush=True)
                    said[key] = words
            if now and all(standing.state not in ("queued", "running") for standing in now.values()):
                return _verdict(list(now.values()))
            time.sleep(seconds)
    except KeyboardInterrupt:
        folders = ", ".join(str(manifest.folder) for manifest in manifests)
        print(f"\nno longer waiting; the jobs of {folders} go on", file=sys.stderr)
        sys.exit(130)


def look(manifest: Manifest, points: Sequence[str]) -> list[Standing]:
    """Where the points stand; nothing while SLURM does not answer, which may be an hour of maintenance."""
    try:
        submissions = manifest.read()
        adopt(manifest, submissions, write=False)
        return standings(manifest, points, submissions)
    except SlurmError as error:
        print(f"{time.strftime('%H:%M:%S')} {error}; waiting", file=sys.stderr, flush=True)
        return []


def describe(standing: Standing) -> str:
    job = f" (job {standing.job})" if standing.job else ""
    return f"{standing.state}{job}{': ' + standing.reason if standing.reason else ''}"


def _verdict(stand: Sequence[Standing]) -> bool:
    bad = [standing for standing in stand if standing.state != "done"]
    print(f"{len(stand) - len(bad)} of {len(stand)} points done")
    return not bad
