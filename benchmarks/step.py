"""One training step on both sides, its optimizer step, and its host reads.

`Sides` runs ours with `Trainer.train_step` of fovea_detr/training/loop.py, and the plain model with the same weights,
images and objects with benchmarks/plain/step.py. Batches are assembled before; benchmarks/data.py measures their cost.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.criterion import OBJECTS, as_targets, count_row
from benchmarks.measure import (
    GIVEN_BACK,
    MIB,
    fresh,
    host_reads,
    in_turn,
    peak_bytes,
    random_targets,
)
from benchmarks.plain.criterion import plain_criterion
from benchmarks.plain.layers import pad
from benchmarks.plain.model import plain_twin
from benchmarks.plain.step import new_log, plain_optimizer, plain_step
from fovea_detr.build import build_criterion, build_model, class_outputs
from fovea_detr.compose import load_config
from fovea_detr.data.loader import collate_images
from fovea_detr.machine.device import seconds
from fovea_detr.machine.distributed import WithLosses
from fovea_detr.model.detr import DETR
from fovea_detr.runs.folder import RunFolder
from fovea_detr.training.console import Console
from fovea_detr.training.loop import Trainer
from fovea_detr.training.optim import build_optimizer
from fovea_detr.training.state import TrainState
from fovea_detr.types import Batch

Wrap = Callable[[torch.nn.Module], torch.nn.Module]
R50 = ["model=fovea_r50", "model.backbone_weights=none"]
TINY = ["experiment=tiny", "data.num_classes=7"]


class Sides:
    """overrides: of the configuration. size_hw: of every image except the last, which is a quarter narrower. side: the
    model to build, "both", "ours" or "plain" (to measure memory). wrap: DDP's constructor, for several ranks."""

    def __init__(
        self,
        overrides: list[str],
        size_hw: tuple[int, int],
        batch: int,
        device: str = "cpu",
        side: str = "both",
        wrap: Wrap = lambda model: model,
    ) -> None:
        self.config = load_config(overrides)
        self.device = torch.device(device)
        draw = torch.Generator().manual_seed(1)
        height, width = size_hw
        widths = [width] * (batch - 1) + [width * 3 // 4]
        self.images = [torch.randn(3, height, w, generator=draw) for w in widths]
        self.objects = random_targets(batch, OBJECTS, (self.config.data.num_classes or 91) - 1)
        torch.manual_seed(self.config.seed)
        model = build_model(self.config)
        if side != "ours":
            self._build_plain(model, wrap)
        if side != "plain":
            self._build_ours(model, wrap)

    def _build_ours(self, model: DETR, wrap: Wrap) -> None:
        self.model: DETR = model.to(self.device).train()
        self.optimizer = build_optimizer(self.model, self.config.schedule)
        self.folder = tempfile.TemporaryDirectory()
        folder, state = RunFolder(Path(self.folder.name) / "run"), TrainState(self.model, self.optimizer)
        criterion, console = build_criterion(self.config).to(self.device), Console(folder, "step", 1, enabled=False)
        self.trainer = Trainer(self.config, folder, self.device, state, criterion, console)
        self.trainer.wrapped = wrap(WithLosses(self.model))
        self.batch, self.targets = pinned(collate_images(self.images), self.device), as_targets(self.objects)

    def _build_plain(self, model: torch.nn.Module, wrap: Wrap) -> None:
        twin = plain_twin(self.config, model).to(self.device).train()
        self.plain_model, self.plain_wrapped = twin, wrap(twin)
        self.plain_optimizer = plain_optimizer(twin, self.config.schedule)
        self.plain_criterion = plain_criterion(self.config, class_outputs(self.config)).to(self.device)
        self.plain_batch, self.log = pad(self.images), new_log()

    def ours(self) -> None:
        self.trainer.train_step(self.batch, self.targets, step=0)

    def loss_of_ours(self) -> float:
        """The total loss of the last step, which training reads in the next one."""
        self.trainer.reports.settle()
        return self.trainer.reports.latest["loss"]

    def plain(self) -> float:
        images, is_padding = (part.to(self.device) for part in self.plain_batch)
        targets = [{name: part.to(self.device) for name, part in one.items()} for one in self.objects]
        bf16 = self.config.precision == "bf16"
        step = (self.plain_wrapped, self.plain_criterion, self.plain_optimizer, (images, is_padding), targets, self.log)
        return plain_step(*step, clip=self.config.schedule.clip, bf16=bf16)


def pinned(batch: Batch, device: torch.device) -> Batch:
    """In pinned memory for a GPU, as from the loader."""
    if device.type == "cuda":
        batch.images = batch.images.pin_memory()
    return batch


# ---- optimizer -------------------------------------------------------------------------------------------------------


def optimizer_rows(runs: int, device: str = "cpu") -> list[dict[str, Any]]:
    """One AdamW step of the R50 model with given gradients, without clipping."""
    sides = Sides(R50, (64, 64), 1, device)
    for model in (sides.model, sides.plain_model):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, 1e-3)
    plain, ours = in_turn(sides.plain_optimizer.step, sides.optimizer.step, runs, device)
    row = {"part": "AdamW step, R50", "plain": 1e3 * plain, "ours": 1e3 * ours, "unit": "ms", "ratio": plain / ours}
    return [{**row, "prototype": 3.8, "below": kernel_share(sides) if device == "cpu" else ""}]


def kernel_share(sides: Sides) -> str:
    """The share of torch's fused kernel in our optimizer step."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        sides.optimizer.step()
    took = {event.key: event.cpu_time_total for event in seen.key_averages()}
    kernel, whole = took["aten::_fused_adamw_"], took["Optimizer.step#AdamW.step"]
    return f"{kernel / whole:.0%} of the step is torch's fused kernel, one call per learning rate"


# ---- the whole step --------------------------------------------------------------------------------------------------


def times(runs: int, overrides: list[str], size_hw: list[int], batch: int, device: str = "cpu") -> list[float]:
    """-> median seconds of a step, plain and ours, and of the plain backbone's forward and backward pass."""
    sides = Sides(overrides, (size_hw[0], size_hw[1]), batch, device)
    images, body = sides.plain_batch[0].to(device), sides.plain_model.backbone["body"]

    def backbone() -> None:
        features = body(images)
        (features["0"] if isinstance(features, dict) else features).sum().backward()

    both = in_turn(sides.plain, sides.ours, runs, device)
    return [*both, median(seconds(backbone, sides.device) for _ in range(runs))]


def peak(side: str, overrides: list[str], size_hw: list[int], batch: int, device: str = "cpu") -> int:
    """Bytes of model, gradients, optimizer and one step, after a warm-up with a tiny model."""
    getattr(Sides(TINY, (64, 64), 1, device, side), side)()

    def work() -> None:
        sides = Sides(overrides, (size_hw[0], size_hw[1]), batch, device, side)
        for _ in range(2):  # the first step creates the optimizer's state
            getattr(sides, side)()

    return peak_bytes(work, device)


def whole_rows(runs: int, device: str = "cpu") -> list[dict[str, Any]]:
    common = {"overrides": R50, "size_hw": [480, 640], "batch": 2, "device": device}
    plain, ours, backbone = fresh("benchmarks.step:times", runs=runs, **common)
    peaks = [fresh("benchmarks.step:peak", GIVEN_BACK, side=side, **common) / MIB for side in ("plain", "ours")]
    row = {"part": "whole training step, R50, 480x640, batch 2, float32", "plain": plain, "ours": ours, "unit": "s"}
    row |= {"ratio": plain / ours, "prototype": 1.15, "memory": peaks, "memory_prototype": 0.86}
    row |= {"note": f"the plain backbone takes {backbone:.2f} s", "below": "the backbone is most of either side"}
    return [row, *read_rows(device)]


def read_rows(device: str = "cpu") -> list[dict[str, Any]]:
    """Host reads of the device in a whole step, logging included; independent of the model's size."""
    sides = Sides([*TINY, "model.encoder_layers=6", "model.decoder_layers=6"], (96, 128), 2, device)
    for side in (sides.plain, sides.ours):
        side()
    # Without the optimizers: torch's loop reads step counts, which are on the host anyway.
    with patch.object(sides.plain_optimizer, "step"), patch.object(sides.optimizer, "step"):
        slow, fast = host_reads(sides.plain), host_reads(sides.ours)
    row = count_row("reads by the host in a whole step, 6 layers, without the optimizer", slow, fast)
    return [{**row, "limit": 1}]
