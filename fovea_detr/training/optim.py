"""AdamW with a group for the backbone, and the learning rate as a function of the step alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fovea_detr.config.schema import Schedule
from fovea_detr.errors import WeightsError


def build_optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW with two groups, as in DETR: the backbone's trained parameters at `lr_backbone`, the others at `lr`.

    A learned position is in the backbone's group, for DETR names it `backbone.1`; lr_backbone=0 freezes it as well.
    """
    rest, backbone = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (backbone if name.startswith(("backbone.", "position.")) else rest).append(parameter)
    groups = [{"params": rest, "base_lr": schedule.lr}, {"params": backbone, "base_lr": schedule.lr_backbone}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True)


def refuse_other_groups(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """saved: the state dict of an optimizer. Raises WeightsError if its groups are not those of this optimizer."""
    before, now = (
        [len(group["params"]) for group in groups] for groups in (saved["param_groups"], optimizer.param_groups)
    )
    if before != now:
        raise WeightsError(
            f"the checkpoint's optimizer has groups of {before} parameters, this version's has {now}: the run was "
            "trained by another version, with a setting that this one does not have or with a learned position at "
            "schedule.lr; it cannot be resumed; start again with study=NAME"
        )


def step_if_finite(optimizer: torch.optim.Optimizer, values: Tensor) -> None:
    """One step, or none if one of the values [N] is NaN or infinite: decided on the device, without a synchronisation.

    torch's GradScaler skips steps in the same way; the fused optimizer does not count a skipped step.
    """
    optimizer.found_inf = values.isfinite().all().logical_not().float()  # type: ignore[attr-defined]
    optimizer.step()


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def learning_rate_factor(schedule: Schedule, step: int, steps_per_epoch: int) -> float:
    """The factor on both learning rates at a step (0-based) of the whole run.

    Linear warm-up over the first `warmup` of all steps; then `step`: 1, divided by 10 after every `lr_drop` epochs, as
    by DETR's StepLR; or `cosine`: from 1 down to 0.01 at the last step. Beyond the schedule's epochs (extend=N), `step`
    goes on to drop, and `cosine` stays at 0.01.
    """
    total = schedule.epochs * steps_per_epoch
    warmup = round(schedule.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.kind == "step":
        assert schedule.lr_drop is not None
        return 0.1 ** (step // steps_per_epoch // schedule.lr_drop)
    progress = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
