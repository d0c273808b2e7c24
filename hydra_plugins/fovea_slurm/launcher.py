"""The launchers: compose and check every point first; then run them here, or submit them by fovea_detr.study."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import LocalLauncher, SlurmLauncher
from omegaconf import DictConfig, open_dict, read_write

from fovea_detr.errors import ConfigError, RunFolderError, tell

if TYPE_CHECKING:
    from fovea_detr.study.manifest import Point


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
        make_study_folder(config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from fovea_detr.runs.files import adopt_group
        from fovea_detr.study.checks import points_by_study, refuse_another_run
        from hydra_plugins.fovea_slurm._compose import compose_all

        assert self.config is not None
        assert self.hydra_context is not None
        folder = Path(self.config.hydra.sweep.dir)
        for file in folder.glob("*.yaml"):  # the sweeper's, which a colleague's next sweep replaces
            adopt_group(file, folder)
        points = compose_all(self.loader, self.config, without_twins(self.config, job_overrides))
        for point in (one for group in points_by_study(points).values() for one in group):
            refuse_another_run(point)
        self.hydra_context.config_loader = self.loader
        return super().launch(job_overrides, initial_job_idx)


def make_study_folder(config: DictConfig) -> None:
    """Before Hydra makes it, which does not give the group its rights. Raises RunFolderError."""
    from fovea_detr.runs.files import make_folder, why_not_writable

    folder = Path(config.hydra.sweep.dir)
    try:
        make_folder(folder)
    except OSError as error:
        raise RunFolderError(why_not_writable(folder, error)) from None


def is_plain_sweep(config: DictConfig) -> bool:
    return config.hydra.sweeper._target_.endswith(".BasicSweeper")


def without_twins(config: DictConfig, job_overrides: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """A sweeper of trials may choose a point twice: it runs once, for both. In a plain sweep that is an error."""
    overrides = [tuple(one) for one in job_overrides]
    return overrides if is_plain_sweep(config) else list(dict.fromkeys(overrides))


def refuse_sweeper_without_results(config: DictConfig, *, waits: bool, dry_run: bool = False) -> None:
    """Raise ConfigError if a launcher that does not wait for results is combined with a sweeper that needs them."""
    if is_plain_sweep(config) or (waits and not dry_run):
        return
    sweeper = config.hydra.sweeper._target_
    what = "a dry run has none: leave it out" if dry_run else "add hydra.launcher.wait=true"
    raise ConfigError(f"{sweeper.rpartition('.')[2]} needs each point's result: {what}")


class _Launch:
    """What the launchers of queues do instead of the plugin's."""

    kind = ""
    params: dict[str, Any]
    config: DictConfig | None
    scratch: str | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)  # type: ignore[misc]
        self.loader = hydra_context.config_loader
        hydra_context.config_loader = _Composer(self.loader)  # type: ignore[assignment]
        if is_plain_sweep(config):
            # It writes its multirun.yaml before it asks any launcher: in a dry run, and into a study that a colleague
            # is submitting. The manifest holds the command. A sweeper of trials writes what it found at the end.
            self.scratch = tempfile.mkdtemp()
            sweep = config.hydra.sweep
            with read_write(sweep), open_dict(sweep):  # Hydra 1.4 has made it read-only
                sweep.dir = self.scratch
        else:
            make_study_folder(config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:  # noqa: ARG002
        from fovea_detr.study.launch import launch
        from hydra_plugins.fovea_slurm._compose import compose_all, last_ap

        assert self.config is not None
        dry_run = self.params["dry_run"]
        refuse_sweeper_without_results(self.config, waits=self.params["wait"], dry_run=dry_run)
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)
        try:
            overrides = without_twins(self.config, job_overrides)
            points = compose_all(self.loader, self.config, overrides)
            if self.params["wait"] and not dry_run:
                results = dict(zip(overrides, self._results(points), strict=True))
                return [results[tuple(one)] for one in job_overrides]
            launch(points, self.kind, dry_run=dry_run)
        except KeyboardInterrupt:
            tell("\ninterrupted; what was submitted goes on, and the same command submits the rest")
            sys.exit(128 + signal.SIGINT)
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=last_ap(point)) for point in points]

    def _results(self, points: Sequence[Point]) -> list[JobReturn]:
        """Submit and wait, as often as SLURM has no room for all at once. A failed point ends a plain sweep with 1."""
        from fovea_detr.study.launch import WAITING, launch
        from fovea_detr.study.status import SECONDS, until_ended
        from hydra_plugins.fovea_slurm._compose import result_of

        left = list(points)
        while left:
            waiting = {status.point for status in launch(left, self.kind) if status.state == WAITING}
            until_ended([point for point in left if point.name not in waiting])
            left = [point for point in left if point.name in waiting]
            time.sleep(SECONDS if left else 0)
        results = [result_of(point) for point in points]
        assert self.config is not None
        if is_plain_sweep(self.config) and any(result.status == JobStatus.FAILED for result in results):
            sys.exit(1)
        return results


class FoveaSlurmLauncher(_Launch, SlurmLauncher):
    kind = "slurm"


class FoveaLocalLauncher(_Launch, LocalLauncher):
    kind = "local"
