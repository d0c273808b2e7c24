"""Where a run is tracked besides its folder: a small class for each tool, whose package is imported on first use.

Each tool reads its own environment variables: where its data goes, whether it stays offline (docs/models.md).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from fovea_detr.config.schema import Config, leaves
from fovea_detr.errors import ConfigError

# So that a server out of reach costs seconds of training, where the user has not set the tool's own variable.
DEFAULTS = {"WANDB_INIT_TIMEOUT": "30", "WANDB_FINISH_TIMEOUT": "30", "WANDB_CONSOLE": "off", "WANDB_QUIET": "true"}
DEFAULTS |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": "15", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


@dataclass(frozen=True)
class Tracked:
    """What a tracked run is opened with. id: by which the tool finds the run again; None for a new one."""

    config: Config
    folder: Path
    id: str | None

    @property
    def name(self) -> str:
        return self.folder.name


class Tracker(Protocol):
    """A tracked run, open. id: see Tracked. known: the last epoch that it holds, -1 for none.

    Whatever its methods raise, the training goes on: tracking.py.
    """

    id: str
    known: int

    def __init__(self, run: Tracked) -> None: ...

    def log(self, values: Mapping[str, float], epoch: int) -> None: ...

    def show(self, pictures: Sequence[Path], epoch: int) -> None: ...

    def close(self, *, is_done: bool) -> None: ...


class TensorBoard:
    """Event files in the run folder. A resumed run writes all its epochs again, and purges those of earlier files."""

    id, known = "tensorboard", -1

    def __init__(self, run: Tracked) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        path = run.folder / "tensorboard"
        self._writer = SummaryWriter(str(path), purge_step=0 if path.exists() else None)
        self._writer.add_text("config", f"```json\n{json.dumps(asdict(run.config), indent=2)}\n```", 0)

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, epoch)
        self._writer.flush()

    def show(self, pictures: Sequence[Path], epoch: int) -> None:
        import numpy as np
        from PIL import Image

        for path in pictures:
            self._writer.add_image(f"samples/{path.stem}", np.asarray(Image.open(path)), epoch, dataformats="HWC")

    def close(self, *, is_done: bool) -> None:  # noqa: ARG002
        self._writer.close()


class WandB:
    """Offline, the newest folder in wandb/ holds all epochs: it alone needs `wandb sync`."""

    def __init__(self, run: Tracked) -> None:
        import wandb

        self._wandb, self.id = wandb, run.id or secrets.token_hex(8)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", run.config.study),
            group=os.environ.get("WANDB_RUN_GROUP", run.config.study),
            name=run.name,
            id=self.id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            config=asdict(run.config),
        )
        self.known = self._run.step - 1

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        self._run.log(dict(values), step=epoch, commit=True)

    def show(self, pictures: Sequence[Path], epoch: int) -> None:  # noqa: ARG002 - its step follows the last epoch
        self._run.log({"samples": [self._wandb.Image(str(path), caption=path.stem) for path in pictures]})

    def close(self, *, is_done: bool) -> None:
        self._run.finish(exit_code=0 if is_done else 1)


class MLflow:
    """Its metrics are named as elsewhere, but for signs that MLflow forbids: `C++` is `C_2b__2b_`."""

    def __init__(self, run: Tracked) -> None:
        import mlflow

        self._mlflow, self._client = mlflow, mlflow.MlflowClient()
        self.id = run.id or self._create(run)
        self.known = max(self._epochs("epoch"), default=-1) if run.id else -1
        self._cut_short = max(self.known, 0) + 1 if run.id else None  # a killed process may have sent a part of it

    def _create(self, run: Tracked) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", run.config.study)
        experiment = self._mlflow.set_experiment(name).experiment_id
        id_ = self._client.create_run(experiment, run_name=run.name).info.run_id
        params = [self._mlflow.entities.Param(key, str(value)) for key, value in leaves(run.config).items()]
        for start in range(0, len(params), 100):  # the most that it takes at once
            self._client.log_batch(id_, params=params[start : start + 100])
        return id_

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """`epoch` comes last: where it is, all others are."""
        now = int(time.time() * 1000)
        names = [*(key for key in values if key != "epoch"), "epoch"]
        if epoch == self._cut_short:
            names = [name for name in names if epoch not in self._epochs(name)]
        metrics = [self._mlflow.entities.Metric(_allowed(name), values[name], now, epoch) for name in names]
        for start in range(0, len(metrics), 500):  # it takes 1000 at once
            self._client.log_batch(self.id, metrics=metrics[start : start + 500])
        if epoch == self._cut_short:  # only now, because it reads every metric
            self._client.update_run(self.id, status="RUNNING")

    def _epochs(self, name: str) -> list[int]:
        """Those that hold a metric. It alone is read: a kill may leave another's file empty, which is an error."""
        return [found.step for found in self._client.get_metric_history(self.id, _allowed(name))]

    def show(self, pictures: Sequence[Path], epoch: int) -> None:  # noqa: ARG002 - an artifact has no step
        for path in pictures:
            self._client.log_artifact(self.id, str(path), "samples")

    def close(self, *, is_done: bool) -> None:
        self._client.set_terminated(self.id, "FINISHED" if is_done else "KILLED")


def _allowed(name: str) -> str:
    return re.sub(r"[^\w/ -]", lambda sign: f"_{ord(sign[0]):x}_", name)


class Trackio:
    """It finds a run by its name, which is therefore made unique."""

    def __init__(self, run: Tracked) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._trackio, self.id = trackio, run.id or f"{run.name}-{secrets.token_hex(4)}"
        study = run.config.study
        self._run = trackio.init(study, self.id, group=study, config=asdict(run.config), resume="allow", embed=False)
        last = getattr(self._run, "_initial_last_step", None)  # nothing public tells it
        self.known = -1 if last is None else last

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        self._run.log(dict(values), step=epoch)

    def show(self, pictures: Sequence[Path], epoch: int) -> None:
        images = {f"samples/{path.stem}": self._trackio.Image(path, caption=path.stem) for path in pictures}
        self._run.log(images, step=epoch)

    def close(self, *, is_done: bool) -> None:  # noqa: ARG002
        self._trackio.finish()


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def refuse_missing(name: str) -> None:
    """Raise ConfigError if the package of tracker=`name` is not installed here. It is not imported."""
    spec = importlib.util.find_spec(name) if name in TRACKERS else None
    if name in TRACKERS and (spec is None or spec.origin is None):  # no origin: a folder that has its name
        raise ConfigError(f"tracker={name} needs the package {name}: pip install 'fovea-detr[{name}]'")
