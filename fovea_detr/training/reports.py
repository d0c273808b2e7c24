"""What training steps report, read one step late, so that a step makes the host wait for its device only once.

A step leaves its losses, its gradient's norm and the ranks' stop flags on the device (`post`); they come to the host
with the next step's matching costs, in the same copy (`fetch`). Nobody needs them before: a step whose losses or
gradient are not finite changes no weight, by the optimizer's own look at a flag on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fovea_detr.errors import NonFiniteError
from fovea_detr.loss.matcher import to_host
from fovea_detr.machine import distributed


@dataclass(frozen=True)
class Report:
    """Of one step. values: one number a name, equal on all ranks; own: this rank's losses before they were averaged.

    The last name is "stop": above 0 if any rank has been asked to stop. where: step, rank and images, for messages.
    """

    step: int
    where: str
    names: tuple[str, ...]
    values: Tensor
    own: Tensor


@dataclass
class Ledger:
    """on_read: told each step's values by name, once, in the order of the steps."""

    on_read: Callable[[dict[str, float]], None]
    latest: dict[str, float] = field(default_factory=dict)
    pending: Report | None = None
    _broken: Report | None = None
    _stop_from: float = math.inf  # the first step after which to stop

    def post(self, report: Report) -> None:
        assert self.pending is None, "the step before was never read"
        self.pending = report

    def fetch(self, costs: Tensor) -> np.ndarray:
        """Matching costs -> the same on the host, and with them what the step before has posted."""
        if self.pending is None:
            return to_host(costs)
        count = len(self.pending.values)
        both = to_host(torch.cat((self.pending.values.to(costs.dtype), costs.flatten())))
        self._enter(both[:count].tolist())
        return both[count:].reshape(costs.shape)

    def read(self) -> None:
        """Learn what is pending now, on this rank alone."""
        if self.pending is not None:
            self._enter(to_host(self.pending.values).tolist())

    def check(self) -> None:
        """To be called by all ranks. Raises NonFiniteError, the same on each, if a step that was read is not finite."""
        if self._broken is not None:
            _refuse(self._broken)

    def settle(self) -> None:
        """At a point that all ranks pass: learn what is pending, and raise NonFiniteError if it is not finite."""
        self.read()
        self.check()

    @property
    def is_sound(self) -> bool:
        """Whether every step read was finite."""
        return self._broken is None

    def stops_after(self, step: int) -> bool:
        """Whether all ranks stop after this step: it began after they all had learned that one was asked to."""
        return step >= self._stop_from

    def _enter(self, values: list[float]) -> None:
        report, self.pending = self.pending, None
        assert report is not None
        named = dict(zip(report.names, values, strict=True))
        if named.pop("stop") > 0:
            self._stop_from = min(self._stop_from, report.step + 1)
        if all(map(math.isfinite, named.values())):
            self.latest = named
            self.on_read(named)
        elif self._broken is None:
            self._broken = report


def _refuse(report: Report) -> None:
    """Every rank is here: all learn whose batch it was, and stop with the same line."""
    own = to_host(report.own).tolist()
    norm = dict(zip(report.names, to_host(report.values), strict=True))["gradient_norm"]
    losses = ", ".join(f"{name} {value:g}" for name, value in zip(report.names, own, strict=False))
    mine = all(map(math.isfinite, own))
    told = distributed.gather((mine, f"{report.where}: the losses are not finite ({losses})"))
    culprits = [line for is_finite, line in told if not is_finite]
    gradient = f"{report.where}: the gradient is not finite (norm {norm:g}; {losses})"
    raise NonFiniteError((culprits or [gradient])[0])
