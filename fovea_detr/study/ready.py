"""What the nodes may not be able to reach is checked and fetched at submission: data and ImageNet weights."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fovea_detr.config.checks import check_start
from fovea_detr.config.schema import Config
from fovea_detr.errors import ConfigError, UserError
from fovea_detr.training.trackers import refuse_missing

FETCH = "import sys; from fovea_detr.training.checkpoint import pretrained_state as p; p(sys.argv[1], 'imagenet')"


def make_ready(configs: Sequence[Config]) -> None:
    """Raise UserError if these runs lack data, weights, a detector or the package of their tracker.

    ImageNet weights that are not cached are fetched.
    """
    for config in configs:
        check_start(config)
    for name, python in {(config.tracker, config.cluster.python) for config in configs}:
        if python is None:  # else the jobs have packages of their own
            refuse_missing(name)
    for root in sorted({config.data.root for config in configs if config.data.root}):
        if not Path(root).is_dir():
            raise ConfigError(f"data.root={root}: there is no such folder on this machine; nothing was submitted")
    wanted = {
        config.model.backbone
        for config in configs
        if config.model.backbone_weights == "imagenet" and config.weights is None
    }
    for name in sorted(wanted):
        if not is_cached(name):
            fetch(name)


def is_cached(backbone: str) -> bool:
    """Whether torchvision's ImageNet weights of this name are where torch.hub keeps them."""
    folder = Path(os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch")
    file = file_name(backbone)
    return file is not None and (folder.expanduser() / "hub" / "checkpoints" / file).is_file()


def file_name(backbone: str) -> str | None:
    """Of the weights, as torchvision's source names them, which is read and not imported. The first one is V1."""
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec and spec.submodule_search_locations) or []:
        for path in sorted((Path(folder) / "models").glob("*.py")):
            if found := re.search(rf"/({backbone}-[0-9a-f]{{8}}\.pth)", path.read_text()):
                return found[1]
    return None


def fetch(backbone: str) -> None:
    """Download them in a process of its own, which loads torch. Raises UserError."""
    print(f"fetching the ImageNet weights of {backbone}: the nodes may have no network", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-c", FETCH, backbone], capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        message = re.sub(r"^[\w.]+Error: ", "", last)
        raise UserError(f"{message}; nothing was submitted")
