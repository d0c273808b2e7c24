"""The training loop: one `Trainer` per run and rank."""

from __future__ import annotations

import math
import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fovea_detr.config.batching import Batching
from fovea_detr.config.schema import Config
from fovea_detr.errors import NonFiniteError
from fovea_detr.evaluation.coco import DetectionTable
from fovea_detr.evaluation.detections import gather_detections
from fovea_detr.evaluation.matches import refuse_other_ap, write_matches
from fovea_detr.loss.criterion import Criterion, Losses, mean_objects
from fovea_detr.machine import distributed
from fovea_detr.machine.device import autocast
from fovea_detr.machine.memory import out_of_memory_as_error
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.stop import StopFlag, Stopped
from fovea_detr.training.compiled import Compiled
from fovea_detr.training.console import Console
from fovea_detr.training.frozen import train_mode
from fovea_detr.training.optim import learning_rate_factor, set_learning_rate, step_if_finite
from fovea_detr.training.predictions import write_found
from fovea_detr.training.reports import StepReports, average_over_ranks, last_layer, location
from fovea_detr.training.samples import write_samples
from fovea_detr.training.saver import Saver
from fovea_detr.training.split import Split
from fovea_detr.training.state import TrainState
from fovea_detr.training.validation import ValidationLosses
from fovea_detr.types import Batch, Predictions, Target


@dataclass
class Trainer:
    """One run on this rank. All ranks call the same methods in the same order; only rank 0 writes files.

    train: None with mode=eval. wrapped: the module that training calls: `WithLosses`, with several ranks inside DDP.
    compiled: with compile=true. peak_memory_bytes: of the largest batch, see preflight.py.
    """

    config: Config
    folder: RunFolder
    device: torch.device
    state: TrainState
    criterion: Criterion
    console: Console
    stop: StopFlag = field(default_factory=StopFlag)
    train: Split | None = None
    val: Split | None = None
    compiled: Compiled | None = None
    peak_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        self.wrapped: nn.Module = distributed.WithLosses(self.state.model)
        self.batching = Batching.of(self.config, distributed.world_size())
        self.reports = StepReports(self.state.add_losses)
        gpus = distributed.world_size() if self.device.type == "cuda" else 0
        self.saver = Saver(self.folder, self.state, self.config.checkpoint, gpus)

    def close(self) -> None:
        """End the loaders' worker processes, and close the tracked run."""
        for split in (self.train, self.val):
            if split is not None:
                split.loader.close()
        self.console.close()

    def fit(self) -> None:
        """Train from the current position to the last epoch. Raises Stopped at a step boundary after a signal."""
        self.start()
        if any(distributed.gather(self.stop.number)):  # during the preflight, which may take as long as a step
            self.saver.save()
            raise Stopped(self.stop.number or signal.SIGTERM)
        for _ in range(self.state.epoch, self.config.last_epoch):
            patience = self.config.train.early_stop
            if patience is not None and any(distributed.gather(self.state.has_stalled(patience))):
                self.console.log(f"stopped early: no better AP in the last {patience} evaluations")
                return
            losses = self.train_epoch()
            metrics, timing = self.evaluate_if_due()
            self.commit({**losses, **metrics}, timing)

    def start(self) -> None:
        """Pass the cost of the run so far to the console, and start the clock."""
        state, every = self.state, self.config.evaluation.every
        self.console.start(state.history, state.train_seconds, every, self.saver.gpus)
        self.saver.start_clock()

    def train_epoch(self) -> dict[str, Any]:
        """Train on the remaining batches of this epoch -> its number, mean losses, rate and steps. Raises Stopped."""
        assert self.train is not None
        state, batches = self.state, self.train.epoch_batches(self.state.epoch, self.batching)
        first = state.batches_done
        train_mode(self.wrapped, self.state.model, self.config)
        self.console.start_epoch(state.epoch, len(batches), first)
        left = [micro_batch for step in batches[first:] for micro_batch in step]
        read = self.train.loader.read(left, epoch=state.epoch)
        steps_read = zip(*[read] * self.batching.micro_batches, strict=True)
        for step, micro_batches in enumerate(steps_read, start=state.epoch * len(batches) + first):
            set_learning_rate(state.optimizer, learning_rate_factor(self.config.schedule, step, len(batches)))
            with out_of_memory_as_error(location(step, *(batch for batch, _ in micro_batches))):
                (batch, targets), *more = micro_batches
                self.train_step(batch, targets, step, *more)
            self.console.step_done(self.reports.latest, state.total_batch_size)
            self.end_step(step)
        self.reports.settle()
        rate, steps = state.optimizer.param_groups[0]["lr"], (state.epoch + 1) * len(batches)
        return {"epoch": state.epoch + 1, **self.epoch_means(), "lr": rate, "steps": steps}

    def train_step(self, batch: Batch, targets: list[Target], step: int, *more: tuple[Batch, list[Target]]) -> None:
        """One optimizer step; its report is posted to `reports`. The host synchronises with the device once.

        more: the further micro-batches of this step on this rank, of which each synchronises once more.
        Raises NonFiniteError, at the latest in the next step; a step that is not finite never changes the weights.
        """
        state, micro_batches = self.state, ((batch, targets), *more)
        state.optimizer.zero_grad(set_to_none=True)  # before the forward pass, so that activations reuse the memory
        num_boxes = mean_objects([objects for _, objects in micro_batches], self.device)
        values, last = [], len(micro_batches) - 1
        for i, micro_batch in enumerate(micro_batches):
            # The same dropout for any number of processes, as long as the micro-batches are the same.
            torch.manual_seed(step_seed(self.config.seed, step, distributed.rank() * len(micro_batches) + i))
            with distributed.gradients_kept_local(self.wrapped) if i < last else nullcontext():
                losses = self.losses_of(*micro_batch, step, num_boxes)
                (losses.total / len(micro_batches)).backward()
            values.append(last_layer(losses))
            del losses
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), self.config.schedule.clip or math.inf)
        where, stopping = location(step, *(images for images, _ in micro_batches)), self.stop.number != 0
        report = average_over_ranks(values, norm, stopping=stopping, step=step, where=where)
        step_if_finite(state.optimizer, report.values)
        if state.average is not None:
            state.average.update(state.model, step)
        self.reports.post(report)

    def losses_of(self, batch: Batch, targets: list[Target], step: int, num_boxes: Tensor) -> Losses:
        """The forward pass of a micro-batch. Raises NonFiniteError."""

        def criterion(predictions: Predictions) -> Losses:
            with autocast(self.device, "fp32"):
                return self.criterion(predictions, targets, self.reports.fetch, num_boxes)

        try:
            with autocast(self.device, self.config.precision):
                losses = self.wrapped(batch.to(self.device), criterion)
        except NonFiniteError as error:
            self.reports.check()  # an error of the step before comes first
            raise NonFiniteError(f"{location(step, batch)}: {error}; {self._losses_so_far()}") from None
        self.reports.check()
        return losses

    def end_step(self, step: int) -> None:
        """Count one step and save if due. Once all ranks know of a signal, save and raise Stopped.

        The losses of the last step are read before a checkpoint is written. Raises NonFiniteError.
        """
        self.state.batches_done += 1
        if self.reports.stops_after(step):
            self.reports.settle()
            self.saver.save()
            raise Stopped(self.stop.number or signal.SIGTERM)
        if self.saver.is_due():
            self.reports.read()  # no collective here: the ranks' clocks differ
            if self.reports.all_finite:
                self.saver.save()
        self._write_heartbeat()

    def evaluate_if_due(self) -> tuple[dict[str, Any], dict[str, float]]:
        """`evaluate`, if this epoch is to be evaluated; otherwise two empty dicts."""
        epoch, every = self.state.epoch + 1, self.config.evaluation.every
        if epoch % every and epoch != self.config.last_epoch:
            return {}, {}
        self.saver.save()  # so that the epoch is not lost if the evaluation is killed
        with out_of_memory_as_error(f"evaluation after epoch {epoch}, rank {distributed.rank()}"):
            return self.evaluate()

    def evaluate(self) -> tuple[dict[str, Any], dict[str, float]]:
        """Evaluate the whole validation split, on all ranks -> metrics (empty but on rank 0), evaluation_seconds.

        The averaged weights are evaluated after the weights; their metrics begin with `ema_`.
        """
        assert self.val is not None
        begin, average = time.monotonic(), self.state.average
        wanted = self.config.evaluation.losses and self.config.mode == "train"
        losses = ValidationLosses(self.criterion) if wanted else None
        table = self.detections(self.state.model, losses)
        metrics: dict[str, Any] = {} if losses is None else losses.means()
        averaged = None if average is None else self.detections(average.model)
        if distributed.rank() == 0:
            metrics = self.val.metrics(table) | metrics
            if averaged is not None:
                metrics |= {f"ema_{name}": value for name, value in self.val.metrics(averaged).items()}
            self.keep(self.val, table, metrics)
        return metrics if distributed.rank() == 0 else {}, {"evaluation_seconds": time.monotonic() - begin}

    def detections(self, model: nn.Module, losses: ValidationLosses | None = None) -> DetectionTable:
        """All ranks' detections in the validation split, on every rank. losses: gets every batch of this rank."""
        assert self.val is not None
        val, after_each = self.val, None if losses is None else losses.add
        distributed.share_buffers(model)
        detect = lambda: val.detect(model, self.device, self._stop_or_write_heartbeat, after_each)  # noqa: E731
        return gather_detections(distributed.stop_together(detect))

    def keep(self, val: Split, table: DetectionTable, metrics: dict[str, Any]) -> None:
        """Write the predictions, if wanted, and the matches: of the last evaluation, and of those between if wanted."""
        evaluation, epoch, ap = self.config.evaluation, self.state.epoch + 1, metrics["AP"]
        if evaluation.save_predictions:
            refuse_other_ap(self.folder, ap)
            write_found(self.folder, table, val.panoptic_truth)
        is_last = self.config.mode == "eval" or epoch == self.config.last_epoch
        is_last |= self.state.has_stalled(self.config.train.early_stop, ap)
        if is_last or (evaluation.keep_matches and epoch % evaluation.keep_matches == 0):
            for file, matches in val.matches(table, metrics).items():
                write_matches(self.folder, matches, file.name(None if is_last else epoch))
        if is_last:
            write_samples(self.folder, val.dataset, table, val.ground_truth.names)

    def commit(self, line: dict[str, Any], timing: dict[str, float]) -> None:
        """End the epoch: checkpoint, history and console. line: the epoch's number, losses and metrics."""
        assert self.train is not None
        timing = {**timing, "padding_share": self.train.loader.padding_share}
        if self.compiled is not None:
            timing |= self.compiled.counts()
        self.saver.save_best(line)
        self.saver.commit({**line, "timing": timing})
        self.console.epoch_done(self.state.history[-1])

    def finish(self, metrics: dict[str, Any] | None = None) -> None:
        """Write result.json, which marks the run as done. metrics: with mode=eval; else they come from the history."""
        if distributed.rank() != 0:
            return
        assert self.val is not None
        outcome: dict[str, Any] = {"last": metrics}
        if self.config.mode == "train":
            outcome = {**self.state.outcome(), "peak_memory_bytes": self.peak_memory_bytes}
            if self.state.epoch < self.config.last_epoch:
                outcome["stopped_early"] = True
            outcome |= self.saver.weights_files(outcome)
        result = {
            "mode": self.config.mode,
            **outcome,
            **self.val.inference_time(self.state.model, self.device),
            "parameters": sum(p.numel() for p in self.state.model.parameters()),
            "total_batch_size": self.state.total_batch_size,
            "world_size": distributed.world_size(),
        }
        self.folder.write_result(result)
        self.folder.write_state("done")
        self.console.run_done(result)

    def epoch_means(self) -> dict[str, float]:
        """The mean of each loss over the batches of this epoch whose losses have been read."""
        unread = 0 if self.reports.pending is None else 1
        batches = max(1, self.state.batches_done - unread)
        return {name: value / batches for name, value in self.state.sums.items()}

    def _stop_or_write_heartbeat(self) -> None:
        """Called between batches of an evaluation. Stopping there loses no training: the epoch is saved."""
        if self.stop.number:
            raise Stopped(self.stop.number)
        self._write_heartbeat()

    def _write_heartbeat(self) -> None:
        if distributed.rank() == 0:
            self.folder.beat(epoch=self.state.epoch, batches_done=self.state.batches_done)

    def _losses_so_far(self) -> str:
        means = self.epoch_means()
        if not means:
            return "there was no finite loss before it in this epoch"
        return "mean losses of this epoch so far: " + ", ".join(f"{name} {value:g}" for name, value in means.items())


def step_seed(seed: int, step: int, part: int) -> int:
    """The seed of torch's generator for one micro-batch of a step: dropout does not depend on earlier random numbers.

    part: the number of the micro-batch among those of all ranks; without accumulation, the rank.
    """
    return (seed * 1_000_003 + step) * 4096 + part
