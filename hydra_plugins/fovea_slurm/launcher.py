"""The launchers: compose and check every point first; then run them here, or submit them by fovea_detr.study."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import LocalLauncher, SlurmLauncher
from omegaconf import DictConfig, open_dict

from fovea_detr.errors import ConfigError


class _Composer:
    """Hydra's config loader for the sweeper, which composes every point only to check it.

    `launch` does that right after it, before anything is started, and names the wrong point.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:  # noqa: ARG002
        return master_config


class FoveaBasicLauncher(BasicLauncher):
    """Plain `-m`: the points one after another in this process, once all of them are known to be right."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.loader = hydra_context.config_loader
        hydra_context.config_loader = _Composer(self.loader)  # type: ignore[assignment]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from hydra_plugins.fovea_slurm._compose import compose_all

        assert self.config is not None
        assert self.hydra_context is not None
        compose_all(self.loader, self.config, job_overrides)
        self.hydra_context.config_loader = self.loader
        return super().launch(job_overrides, initial_job_idx)


def refuse_sweeper_without_results(config: DictConfig, *, waits: bool) -> None:
    """Raise ConfigError if a launcher that does not wait for results is combined with a sweeper that needs them."""
    sweeper = config.hydra.sweeper._target_
    if not waits and not sweeper.endswith(".BasicSweeper"):
        raise ConfigError(f"{sweeper.rpartition('.')[2]} needs each point's result: add hydra.launcher.wait=true")


class _Launch:
    """What the launchers of queues do instead of the plugin's."""

    kind = ""
    params: dict[str, Any]
    config: DictConfig | None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)  # type: ignore[misc]
        self.loader = hydra_context.config_loader
        hydra_context.config_loader = _Composer(self.loader)  # type: ignore[assignment]
        self.scratch = tempfile.mkdtemp() if self.params["dry_run"] else None
        if self.scratch is not None:  # the sweeper writes its multirun.yaml before it asks any launcher
            with open_dict(config):
                config.hydra.sweep.dir = self.scratch

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:  # noqa: ARG002
        from fovea_detr.study import launch, status
        from fovea_detr.study.folder import Study
        from hydra_plugins.fovea_slurm._compose import compose_all, last_ap

        assert self.config is not None
        refuse_sweeper_without_results(self.config, waits=self.params["wait"] and not self.params["dry_run"])
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)
        points = compose_all(self.loader, self.config, job_overrides)
        launch.launch(points, self.kind, dry_run=self.params["dry_run"])
        if self.params["wait"] and not self.params["dry_run"]:
            studies: dict[Study, list[str]] = {}
            for point in points:
                studies.setdefault(Study(point.study_folder), []).append(point.name)
            if not status.until_ended(studies):
                sys.exit(1)
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=last_ap(point)) for point in points]


class FoveaSlurmLauncher(_Launch, SlurmLauncher):
    kind = "slurm"


class FoveaLocalLauncher(_Launch, LocalLauncher):
    kind = "local"
