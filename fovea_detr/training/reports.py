"""Reports of training steps, read one step late, so that each step synchronises the host with its device only once.

A step leaves its losses, its gradient norm and the ranks' stop flags on the device (`post`). The next step copies them
to the host together with its matching costs (`fetch`). They are not needed earlier: a step whose losses or gradient are
not finite changes no weight, because the optimizer checks a flag on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fovea_detr.errors import NonFiniteError
from fovea_detr.loss.criterion import Losses
from fovea_detr.loss.matcher import to_host
from fovea_detr.machine import distributed
from fovea_detr.types import Batch


@dataclass(frozen=True)
class Report:
    """The report of one step. values [N]: equal on all ranks, one for each name; own [N - 2]: this rank's own losses.

    The last two names are "gradient_norm" and "stop", which is above 0 if any rank has received a signal.
    where: see `location`.
    """

    step: int
    where: str
    names: tuple[str, ...]
    values: Tensor
    own: Tensor


def last_layer(losses: Losses) -> dict[str, Tensor]:
    """The values of a micro-batch for the report, detached: the total, the last layer's losses and measures."""
    parts = {f"loss_{name}": value[-1].detach() for name, value in losses.by_layer.items()}
    return {"loss": losses.total.detach(), **parts, **losses.measures}


def average_over_ranks(
    micro_batches: Sequence[Mapping[str, Tensor]], norm: Tensor, *, stopping: bool, step: int, where: str
) -> Report:
    """Their values, averaged over micro-batches, and over ranks in one collective together with the stop flags."""
    own = torch.stack([torch.stack([*values.values()]) for values in micro_batches]).mean(0)
    flag = torch.full_like(own[:1], float(stopping))
    *means, flags = distributed.mean(torch.cat((own, flag))).split(1)
    values = torch.cat((*means, norm[None], flags))
    return Report(step, where, (*micro_batches[0], "gradient_norm", "stop"), values, own)


def location(step: int, *batches: Batch) -> str:
    """Step, rank and images, for messages."""
    images = ", ".join(str(image_id) for batch in batches for image_id in batch.image_ids)
    return f"step {step}, rank {distributed.rank()}, images {images}"


@dataclass
class StepReports:
    """on_read: called with each finite step's values by name, once, in the order of the steps."""

    on_read: Callable[[dict[str, float]], None]
    latest: dict[str, float] = field(default_factory=dict)
    pending: Report | None = None
    _not_finite: Report | None = None  # the first such step
    _stop_after: float = math.inf  # the first step after which to stop

    def post(self, report: Report) -> None:
        assert self.pending is None, "the report of the step before was never read"
        self.pending = report

    def fetch(self, costs: Tensor) -> np.ndarray:
        """Matching costs, of any shape -> the same on the host; the pending report is read in the same copy."""
        if self.pending is None:
            return to_host(costs)
        count = len(self.pending.values)
        both = to_host(torch.cat((self.pending.values.to(costs.dtype), costs.flatten())))
        self._record(both[:count].tolist())
        return both[count:].reshape(costs.shape)

    def read(self) -> None:
        """Read the pending report, if any, on this rank alone."""
        if self.pending is not None:
            self._record(to_host(self.pending.values).tolist())

    def check(self) -> None:
        """Raise NonFiniteError, the same on each rank, if a step that was read is not finite. All ranks call this."""
        if self._not_finite is not None:
            _raise_not_finite(self._not_finite)

    def settle(self) -> None:
        """Read the pending report and check it. All ranks call this."""
        self.read()
        self.check()

    @property
    def all_finite(self) -> bool:
        """Whether every step that was read is finite."""
        return self._not_finite is None

    def stops_after(self, step: int) -> bool:
        """Whether all ranks stop after this step: before it began, they all had read that one received a signal."""
        return step >= self._stop_after

    def _record(self, values: list[float]) -> None:
        report, self.pending = self.pending, None
        assert report is not None
        named = dict(zip(report.names, values, strict=True))
        if named.pop("stop") > 0:
            self._stop_after = min(self._stop_after, report.step + 1)
        if all(map(math.isfinite, named.values())):
            self.latest = named
            self.on_read(named)
        elif self._not_finite is None:
            self._not_finite = report


def _raise_not_finite(report: Report) -> None:
    """Gather which rank's batch it was, so that all ranks raise the same line."""
    own = to_host(report.own).tolist()
    norm = dict(zip(report.names, to_host(report.values), strict=True))["gradient_norm"]
    named = zip(report.names, own, strict=False)
    losses = ", ".join(f"{name} {value:g}" for name, value in named if name.startswith("loss"))
    own_is_finite = all(map(math.isfinite, own))
    gathered = distributed.gather((own_is_finite, f"{report.where}: the losses are not finite ({losses})"))
    culprits = [line for is_finite, line in gathered if not is_finite]
    gradient = f"{report.where}: the gradient is not finite (norm {norm:g}; {losses})"
    raise NonFiniteError((culprits or [gradient])[0])
