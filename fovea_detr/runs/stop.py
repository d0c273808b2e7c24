"""How a run is asked to stop, and how it says that it has. Imports no torch: a job listens before it loads it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
# A cluster signals every process of a job; only the main one decides when to stop, and its workers go when it does.
IGNORED_BY_WORKERS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A signal asked the run to stop; everything is saved, and the same command goes on from here."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.exit_code = 128 + number


class StopFlag:
    """Up once SIGUSR2, SIGTERM or Ctrl-C has arrived; a second signal of the kind acts as if nobody had listened.

    `patient`: a second one changes nothing either. SLURM repeats itself, and a job that dies of it counts as failed.
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

    def _catch(self, number: int, frame: object) -> None:  # noqa: ARG002 - the signature of a handler
        self.number = number
        if not self.patient:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def signals_held_back() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_BY_WORKERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
