"""Stop signals and how a run reacts to them. Imports no torch: a job listens for signals before it imports torch."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
# A cluster signals every process of a job; only the main one decides when to stop, and its workers end with it.
IGNORED_BY_WORKERS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A signal asked the run to stop; everything is saved, and the same command continues it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.exit_code = 128 + number


class StopFlag:
    """Set once SIGUSR2, SIGTERM or Ctrl-C has arrived; a second signal of the same kind has its default effect.

    patient: a second one is ignored. SLURM repeats its signals, and a job that is killed by one counts as failed.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.number = 0
        self.patient = patient

    @contextmanager
    def listening(self) -> Iterator[StopFlag]:
        before = {number: signal.signal(number, self._catch) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _catch(self, number: int, frame: object) -> None:  # noqa: ARG002 - a signal handler's signature
        self.number = number
        if not self.patient:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Block the stop signals; those that arrive are delivered at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_BY_WORKERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
