"""Hydra's side of the sweeps: the launchers behind `hydra/launcher=submitit_slurm` and `submitit_local`."""
