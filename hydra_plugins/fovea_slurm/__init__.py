"""Hydra's launchers for sweeps: `hydra/launcher=basic` (the default), `submitit_slurm` and `submitit_local`."""
