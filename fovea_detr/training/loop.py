"""Training: the loop of a run on one screen, and one step of it. Every start is a resume."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fovea_detr.data.batches import epoch_batches, eval_batches
from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.loader import Loader
from fovea_detr.errors import NonFiniteError
from fovea_detr.evaluation.coco import GroundTruth, coco_metrics
from fovea_detr.evaluation.detections import detect, gather_detections
from fovea_detr.loss.criterion import Criterion, Losses
from fovea_detr.machine import distributed
from fovea_detr.machine.device import autocast
from fovea_detr.machine.memory import shortage_named
from fovea_detr.training.compiled import plain
from fovea_detr.training.console import Progress
from fovea_detr.training.optim import learning_rate_factor, set_learning_rate, step_if_finite
from fovea_detr.training.reports import Report
from fovea_detr.training.state import Parts, Run
from fovea_detr.types import Batch, Target


@dataclass
class Work:
    """What a run is carried out with, besides what it changes (Parts)."""

    train: CocoDataset | None
    val: CocoDataset
    criterion: Criterion
    progress: Progress
    backend: str  # of COCO's evaluation
    train_loader: Loader | None
    val_loader: Loader

    @cached_property
    def ground_truth(self) -> GroundTruth:
        """Of the validation split, read at the first evaluation by whoever computes metrics."""
        return GroundTruth(self.val.annotations.ground_truth(), self.backend)

    def close(self) -> None:
        """End the loaders' worker processes."""
        for loader in (self.train_loader, self.val_loader):
            if loader is not None:
                loader.close()


def fit(run: Run, parts: Parts, work: Work) -> None:
    """Train to the last epoch from wherever the run stands. Raises Stopped at a step boundary after a signal."""
    schedule = run.config.schedule
    run.start_clock()
    work.progress.start(run.position.history, run.position.train_seconds, run.config.evaluation.every, run.gpus)
    for epoch in range(run.epoch, schedule.epochs):
        losses = train_one_epoch(run, parts, work)
        due = (epoch + 1) % run.config.evaluation.every == 0 or epoch + 1 == schedule.epochs
        if due:
            run.save(parts)  # an evaluation that is killed does not cost the epoch
        with shortage_named(f"evaluation after epoch {epoch + 1}, rank {distributed.rank()}"):
            metrics, timing = evaluate(run, parts, work) if due else ({}, {})
        assert work.train_loader is not None
        timing["padding_share"] = work.train_loader.padding_share
        if parts.compiled is not None:
            timing |= parts.compiled.counts()
        line = {"epoch": epoch + 1, **losses, **metrics, "timing": timing}
        run.commit(line, parts)
        work.progress.epoch_done(run.position.history[-1])


def train_one_epoch(run: Run, parts: Parts, work: Work) -> dict[str, float]:
    """The batches of this epoch that are still to do -> the epoch's mean losses. Raises Stopped."""
    config, position, loader = run.config, run.position, work.train_loader
    assert loader is not None
    batches = run_batches(run, work)
    start = position.batches_done
    parts.wrapped.train()
    work.progress.start_epoch(position.epoch, len(batches), start)
    for i, (batch, targets) in enumerate(loader.read(batches[start:], epoch=position.epoch), start=start):
        step = position.epoch * len(batches) + i
        factor = learning_rate_factor(config.schedule, step, len(batches))
        set_learning_rate(parts.optimizer, factor)
        with shortage_named(_where(step, batch)):
            train_step(run, parts, work.criterion, batch, targets, step)
        work.progress.step_done(run.ledger.latest, run.total_batch_size)
        run.step_done(step, parts)
    run.ledger.settle()
    return {
        **run.epoch_means(),
        "lr": parts.optimizer.param_groups[0]["lr"],
        "steps": (position.epoch + 1) * len(batches),
    }


def train_step(run: Run, parts: Parts, criterion: Criterion, batch: Batch, targets: list[Target], step: int) -> None:
    """One step on every rank; what came of it is posted to the run's ledger. The host waits for the device once.

    Raises NonFiniteError, at the latest in the next step; a step that is not finite never touches the weights.
    """
    config = run.config
    torch.manual_seed(step_seed(config.seed, step, distributed.rank()))
    parts.optimizer.zero_grad(set_to_none=True)  # before the forward pass, whose activations take their place
    with autocast(run.device, config.precision):
        predictions = parts.wrapped(batch.to(run.device))
    try:
        losses = criterion(predictions, targets, run.ledger.fetch)
    except NonFiniteError as error:
        run.ledger.check()  # the step before comes first
        raise NonFiniteError(f"{_where(step, batch)}: {error}; {_last_losses(run)}") from None
    run.ledger.check()
    losses.total.backward()
    norm = torch.nn.utils.clip_grad_norm_(parts.model.parameters(), config.schedule.clip or math.inf)
    report = _report(losses, norm, run, step, batch)
    step_if_finite(parts.optimizer, report.values)
    run.ledger.post(report)


def evaluate(run: Run, parts: Parts, work: Work) -> tuple[dict[str, Any], dict[str, float]]:
    """Detections of the whole validation split on all ranks -> the metrics (on rank 0, else empty) and what it took."""
    begin, config = time.monotonic(), run.config
    distributed.share_buffers(parts.model)
    batches = eval_batches(len(work.val), config.evaluation.batch_size, distributed.world_size(), distributed.rank())
    loaded = work.val_loader.read(batches)
    look = lambda: detect(parts.model, loaded, run.device, config.precision, run.leave_if_asked)  # noqa: E731
    with plain():
        table = gather_detections(run.unless_asked(look))
    metrics: dict[str, Any] = {}
    if run.is_writer:
        metrics = coco_metrics(work.ground_truth, table)
        if config.evaluation.save_predictions:
            run.folder.write_predictions(table.results())
    return metrics, {"evaluation_seconds": time.monotonic() - begin}


def run_batches(run: Run, work: Work) -> list[list[int]]:
    """This rank's batches of the present epoch."""
    assert work.train is not None
    config, world = run.config, distributed.world_size()
    ratios = work.train.aspect_ratios(config.seed, run.epoch) if config.data.bucketing else None
    size = config.schedule.batch_size
    return epoch_batches(len(work.train), size, world, distributed.rank(), config.seed, run.epoch, ratios)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The generator's seed for one step on one rank: dropout depends on nothing that was drawn before."""
    return (seed * 1_000_003 + step) * 4096 + rank


def _report(losses: Losses, norm: Tensor, run: Run, step: int, batch: Batch) -> Report:
    """The total and the last layer's losses, averaged over ranks in one collective with the stop flags."""
    parts = {f"loss_{name}": value[-1].detach() for name, value in losses.by_layer.items()}
    own = torch.stack([losses.total.detach(), *parts.values()])
    flag = torch.full_like(own[:1], float(run.stop.number != 0))
    *means, flags = distributed.mean(torch.cat((own, flag))).split(1)
    values = torch.cat((*means, norm[None], flags))
    return Report(step, _where(step, batch), ("loss", *parts, "gradient_norm", "stop"), values, own)


def _where(step: int, batch: Batch) -> str:
    return f"step {step}, rank {distributed.rank()}, images {', '.join(map(str, batch.image_ids))}"


def _last_losses(run: Run) -> str:
    means = run.epoch_means()
    if not means:
        return "there was no finite loss before it in this epoch"
    return "mean losses of this epoch so far: " + ", ".join(f"{name} {value:g}" for name, value in means.items())
