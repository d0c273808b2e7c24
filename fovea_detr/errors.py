"""Errors that a user can correct. Every other exception is a bug and keeps its traceback."""

from __future__ import annotations

import sys


class UserError(ValueError):
    """One line: what is wrong, where, and what to do. `run.py` prints it without a traceback and exits with 2."""


class ConfigError(UserError):
    """The composed configuration is invalid."""


class DataError(UserError):
    """The data set on disk is incomplete or damaged."""


class WeightsError(UserError):
    """A checkpoint cannot be read, or does not fit the model."""


class NonFiniteError(UserError):
    """Training produced NaN or infinity: names images, rank, step and loss parts. A requeue would not help."""


class OutOfMemoryError(UserError):
    """The device, or the machine, has too little memory: names what was tried and, on a GPU, what fits."""


class NodeError(UserError):
    """The machine lacks what the job has asked for: another one may have it."""


class RunFolderError(UserError):
    """The run folder belongs to another configuration, or to a process that is still running."""


def tell(line: str) -> None:
    """One line on stderr, in one write: `print` under `python -u` makes two, between which another rank may write."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
