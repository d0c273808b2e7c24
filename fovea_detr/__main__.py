"""The program: run.py, `python -m fovea_detr` and `fovea-detr` all start it; arguments: `[-m] key=value ...`."""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fovea_detr import cli
from fovea_detr.compose import parse
from fovea_detr.config.local import with_local
from fovea_detr.config.schema import CONF_DIR
from fovea_detr.errors import tell
from fovea_detr.runs.host import process_rank
from fovea_detr.runs.paths import with_absolute_weights
from fovea_detr.runs.points import Folders, point_name
from hydra_plugins.fovea_slurm.config import register


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def run_point(composed: DictConfig) -> float | None:
    """Train and evaluate one point of the grid -> AP; Hydra calls this once per point of a sweep."""
    hydra_config = HydraConfig.get()
    typed, leave = hydra_config.overrides.task, hydra_config.mode == RunMode.RUN
    with cli.one_line_errors(leave, on_every_rank=True):
        config = with_absolute_weights(parse(with_local(composed, typed)))
        if config.mode == "eval":
            with cli.importing_torch():
                from fovea_detr.training.trained import as_trained  # reads the checkpoint

            config = as_trained(config, typed)
    with cli.one_line_errors(leave):
        study_folder = Path(config.runs) / config.study
        folders = Folders(study_folder)
        point = folders.name(point_name(typed), config)
        if (note := folders.shorter(point, config)) and process_rank() == 0:
            tell(note)

        with cli.importing_torch():  # only after the configuration has passed its checks
            from fovea_detr import experiment

        return experiment.run(config, point)


def main() -> None:
    register()
    cli.run_cleanly(run_point)


if __name__ == "__main__":
    main()
