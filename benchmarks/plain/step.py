"""Optimizer and training step as published: two parameter groups, updated tensor by tensor, and a device read for every
logged value."""

from __future__ import annotations

import math
from collections import defaultdict, deque

import torch
from torch import Tensor, nn

from benchmarks.plain.criterion import Objects, PlainCriterion
from fovea_detr.config.schema import Schedule

Log = dict[str, "deque[float]"]


def plain_optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    """The backbone at its own rate. AdamW had neither fused nor foreach when the code was published."""
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in trainable if "backbone" not in name], "base_lr": schedule.lr},
        {
            "params": [p for name, p in trainable if "backbone" in name],
            "lr": schedule.lr_backbone,
            "base_lr": schedule.lr_backbone,
        },
    ]
    decay = schedule.weight_decay
    return torch.optim.AdamW(groups, lr=schedule.lr, weight_decay=decay, foreach=False, fused=False)


def new_log() -> Log:
    return defaultdict(lambda: deque(maxlen=20))


def plain_step(
    model: nn.Module,
    criterion: PlainCriterion,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    targets: Objects,
    log: Log,
    *,
    clip: float = 0.1,
    bf16: bool = False,
) -> float:
    """batch: padded images and their padding; -> the loss. With bf16 the model alone runs under autocast."""
    device = batch[0].device
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        outputs = model(*batch)
    if bf16:
        outputs = in_float32(outputs)
    losses = criterion(outputs, targets)
    zero = torch.zeros((), device=device)
    total = sum((losses[name] * weight for name, weight in criterion.weights.items()), zero)
    scaled = {name: losses[name].detach() * weight for name, weight in criterion.weights.items()}
    value = sum(scaled.values(), zero).item()
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value}")
    optimizer.zero_grad()
    total.backward()
    if clip > 0:
        nn.utils.clip_grad_norm_(model.parameters(), clip, foreach=False)
    optimizer.step()
    log["loss"].append(value)
    for name, part in scaled.items():
        log[name].append(part.item())
    for name, part in losses.items():
        log[f"{name}_unscaled"].append(part.detach().item())
    return value


def in_float32(outputs: dict) -> dict:
    aux = [{name: part.float() for name, part in layer.items()} for layer in outputs["aux_outputs"]]
    both = {name: outputs[name].float() for name in ("pred_logits", "pred_boxes")}
    return {**both, "aux_outputs": aux}
