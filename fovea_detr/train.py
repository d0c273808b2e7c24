"""Training: the loop of a run on one screen, and one step of it. Every start is a resume."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fovea_detr import distributed
from fovea_detr.criterion import Criterion, Losses
from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.loader import Loader, build_loader, epoch_batches, eval_batches
from fovea_detr.errors import NonFiniteError
from fovea_detr.evaluate import autocast, coco_metrics, detect, gather_results
from fovea_detr.lifecycle import Parts, Run
from fovea_detr.optim import learning_rate_factor, set_learning_rate
from fovea_detr.progress import Progress
from fovea_detr.types import Batch, Target


@dataclass
class Work:
    """What a run is carried out with, besides what it changes (Parts)."""

    train: CocoDataset | None
    val: CocoDataset
    criterion: Criterion
    progress: Progress


def fit(run: Run, parts: Parts, work: Work) -> None:
    """Train to the last epoch from wherever the run stands. Raises Stopped at a step boundary after a signal."""
    schedule = run.config.schedule
    for epoch in range(run.epoch, schedule.epochs):
        losses = train_one_epoch(run, parts, work)
        due = (epoch + 1) % run.config.evaluation.every == 0 or epoch + 1 == schedule.epochs
        if due:
            run.save(parts)  # an evaluation that is killed does not cost the epoch
        metrics, timing = evaluate(run, parts, work) if due else ({}, {})
        line = {"epoch": epoch + 1, **losses, **metrics, "timing": timing}
        run.commit(line, parts)
        work.progress.epoch_done(run.position.history[-1])


def train_one_epoch(run: Run, parts: Parts, work: Work) -> dict[str, float]:
    """The batches of this epoch that are still to do -> the epoch's mean losses. Raises Stopped."""
    config, position = run.config, run.position
    batches = run_batches(run, work)
    start = position.batches_done
    parts.wrapped.train()
    work.progress.start_epoch(position.epoch, len(batches), start)
    for i, (batch, targets) in enumerate(train_loader(run, work, batches[start:]), start=start):
        step = position.epoch * len(batches) + i
        factor = learning_rate_factor(config.schedule, step, len(batches))
        set_learning_rate(parts.optimizer, factor)
        losses, stop = train_step(run, parts, work.criterion, batch, targets, step)
        work.progress.step_done(losses, run.total_batch_size)
        run.step_done(losses, stop, parts)
    return {
        **run.epoch_means(),
        "lr": parts.optimizer.param_groups[0]["lr"],
        "steps": (position.epoch + 1) * len(batches),
    }


def train_step(
    run: Run, parts: Parts, criterion: Criterion, batch: Batch, targets: list[Target], step: int
) -> tuple[dict[str, float], bool]:
    """One step on every rank -> the losses averaged over ranks, and whether any rank has been asked to stop.

    Raises NonFiniteError before the weights are touched.
    """
    config = run.config
    torch.manual_seed(step_seed(config.seed, step, distributed.rank()))
    with autocast(run.device, config.precision):
        predictions = parts.wrapped(batch.to(run.device))
    try:
        losses = criterion(predictions, targets)
    except NonFiniteError as error:
        raise NonFiniteError(f"{_where(step, batch)}: {error}; {_last_losses(run)}") from None
    parts.optimizer.zero_grad(set_to_none=True)
    losses.total.backward()
    norm = torch.nn.utils.clip_grad_norm_(parts.model.parameters(), config.schedule.clip or math.inf)
    values, stop = _agree(losses, norm, run)
    if not all(math.isfinite(value) for value in values.values()):
        _refuse_non_finite(losses, norm, batch, step)
    parts.optimizer.step()
    return values, stop


def evaluate(run: Run, parts: Parts, work: Work) -> tuple[dict[str, Any], dict[str, float]]:
    """Detections of the whole validation split on all ranks -> the metrics (on rank 0, else empty) and what it took."""
    begin, config = time.monotonic(), run.config
    share_buffers(parts.model)
    batches = eval_batches(len(work.val), config.evaluation.batch_size, distributed.world_size(), distributed.rank())
    loader = build_loader(work.val, batches, epoch=0, seed=config.seed, workers=config.data.workers)
    look = lambda: detect(parts.model, loader, run.device, config.precision, run.leave_if_asked)  # noqa: E731
    results = gather_results(run.unless_asked(look))
    metrics: dict[str, Any] = {}
    if run.is_writer:
        metrics = coco_metrics(work.val.annotations.ground_truth(), results)
        if config.evaluation.save_predictions:
            run.folder.write_predictions(results)
    return metrics, {"evaluation_seconds": time.monotonic() - begin}


def run_batches(run: Run, work: Work) -> list[list[int]]:
    """This rank's batches of the present epoch."""
    assert work.train is not None
    size, world = run.config.schedule.batch_size, distributed.world_size()
    return epoch_batches(len(work.train), size, world, distributed.rank(), run.config.seed, run.epoch)


def train_loader(run: Run, work: Work, batches: list[list[int]]) -> Loader:
    assert work.train is not None
    config, on_gpu = run.config, run.device.type == "cuda"
    workers = config.data.workers
    return build_loader(work.train, batches, epoch=run.epoch, seed=config.seed, workers=workers, pin_memory=on_gpu)


def share_buffers(model: torch.nn.Module) -> None:
    """Every rank evaluates with rank 0's buffers (running statistics of batch norm), those that are saved."""
    if distributed.is_active():
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The generator's seed for one step on one rank: dropout depends on nothing that was drawn before."""
    return (seed * 1_000_003 + step) * 4096 + rank


def _agree(losses: Losses, norm: Tensor, run: Run) -> tuple[dict[str, float], bool]:
    """The last layer's losses and the total, averaged over ranks, in one collective with the stop flags."""
    parts = {f"loss_{name}": value[-1].detach() for name, value in losses.by_layer.items()}
    flag = losses.total.new_tensor(float(run.stop.number != 0))
    row = torch.stack([losses.total.detach(), *parts.values(), flag])
    *values, flags = distributed.mean(row).tolist()
    named = dict(zip(("loss", *parts), values, strict=True))
    return {**named, "gradient_norm": norm.item()}, flags > 0


def _refuse_non_finite(losses: Losses, norm: Tensor, batch: Batch, step: int) -> None:
    """Every rank is here: all learn whose batch it was, and stop with the same line."""
    mine = bool(torch.isfinite(losses.total))
    parts = ", ".join(f"{name} {value[-1].item():g}" for name, value in losses.by_layer.items())
    line = f"{_where(step, batch)}: the losses are not finite ({parts}, total {losses.total.item():g})"
    culprits = [text for is_finite, text in distributed.gather((mine, line)) if not is_finite]
    gradient = f"{_where(step, batch)}: the gradient is not finite (norm {norm.item():g}; {parts})"
    raise NonFiniteError((culprits or [gradient])[0])


def _where(step: int, batch: Batch) -> str:
    return f"step {step}, rank {distributed.rank()}, images {', '.join(map(str, batch.image_ids))}"


def _last_losses(run: Run) -> str:
    means = run.epoch_means()
    if not means:
        return "there was no finite loss before it in this epoch"
    return "mean losses of this epoch so far: " + ", ".join(f"{name} {value:g}" for name, value in means.items())
