"""The one entry point: `python run.py [key=value ...]`, `python run.py -m axis=a,b,c`, `torchrun ... run.py ...`."""

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fovea_detr import cli
from fovea_detr.compose import parse
from fovea_detr.runs.identity import point_name, with_absolute_weights
from hydra_plugins.fovea_slurm.config import register


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(composed: DictConfig) -> None:
    hydra_config = HydraConfig.get()
    with cli.one_line_errors(leave=hydra_config.mode == RunMode.RUN):
        config = with_absolute_weights(parse(composed))
        point = point_name(hydra_config.overrides.task)

        from fovea_detr import experiment  # torch is imported only once the configuration stands

        experiment.run(config, point)


if __name__ == "__main__":
    register()
    cli.run_cleanly(main)
