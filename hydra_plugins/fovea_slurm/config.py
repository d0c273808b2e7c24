"""The options of the launchers, `hydra.launcher.*`. What a job asks for comes from the `cluster` group."""

from dataclasses import dataclass
from typing import Optional

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf

# ruff: noqa: UP045 - OmegaConf 2.3 reads annotations at run time on Python 3.10; and as Hydra looks for plugins, it runs
# this file before the module has a name, so annotations cannot be strings (no `from __future__ import annotations`).


@dataclass
class FoveaBasicConf:
    _target_: str = "hydra_plugins.fovea_slurm.launcher.FoveaBasicLauncher"


@dataclass
class FoveaSlurmConf(SlurmQueueConf):
    _target_: str = "hydra_plugins.fovea_slurm.launcher.FoveaSlurmLauncher"
    wait: bool = False  # print the changes of each point until all have ended; exit with 1 if one is not done
    dry_run: bool = False  # print the script, the points and the cost; submit and write nothing
    partition: Optional[str] = "${cluster.partition}"
    account: Optional[str] = "${cluster.account}"
    qos: Optional[str] = "${cluster.qos}"
    constraint: Optional[str] = "${cluster.constraint}"
    nodes: int = "${cluster.nodes}"  # type: ignore[assignment]
    tasks_per_node: int = "${cluster.gpus}"  # type: ignore[assignment]
    mem_gb: Optional[float] = "${cluster.mem_gb}"  # type: ignore[assignment]
    # None: from the cluster, too (hours, cpus / gpus, signal_minutes, gpus), see fovea_detr/study/sbatch.py
    timeout_min: Optional[int] = None  # type: ignore[assignment]
    signal_delay_s: Optional[int] = None  # type: ignore[assignment]
    stderr_to_stdout: bool = True


@dataclass
class FoveaLocalConf(LocalQueueConf):
    _target_: str = "hydra_plugins.fovea_slurm.launcher.FoveaLocalLauncher"
    wait: bool = False
    dry_run: bool = False
    parallel: int = 1  # points at a time; they share the GPUs of this machine
    nodes: int = 1
    # None: the point's share of the GPUs; 1 on the CPU
    tasks_per_node: Optional[int] = None  # type: ignore[assignment]
    timeout_min: Optional[int] = None  # type: ignore[assignment]
    stderr_to_stdout: bool = True


def register() -> None:
    """Replace the launchers that have these names. Hydra loads its plugins first: the last one registered counts."""
    Plugins.instance()
    nodes = {"basic": FoveaBasicConf, "submitit_slurm": FoveaSlurmConf, "submitit_local": FoveaLocalConf}
    for name, node in nodes.items():
        ConfigStore.instance().store(group="hydra/launcher", name=name, node=node(), provider="fovea_slurm")
