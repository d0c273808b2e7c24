"""Sweeps on SLURM: what is submitted, frozen and remembered; what runs inside a job. Hydra's part: hydra_plugins/."""
