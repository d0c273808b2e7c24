"""Before the first step: what training is going to need is tried on the device at hand, and leaves no trace.

The worst batch of the data set goes forwards and backwards once, so that a run which does not fit ends before it has
cost anything, with the batch size that does.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fovea_detr.data.worst import WorstBatch, worst_batch
from fovea_detr.errors import NonFiniteError, OutOfMemoryError
from fovea_detr.fovea.attend import choices
from fovea_detr.machine import distributed, memory
from fovea_detr.machine.child import CAN_FORK, ChildFailed, ChildKilled, in_child
from fovea_detr.machine.device import autocast, left_as_it_was
from fovea_detr.model.detr import DETR
from fovea_detr.model.memory_format import pays_channels_last
from fovea_detr.model.pixels import normalised
from fovea_detr.training import compiled
from fovea_detr.training.loop import Work
from fovea_detr.training.state import Parts, Run

Outcome = int | str  # of a try on one rank: the peak in bytes, or what was said when memory was out


def before_first_step(run: Run, parts: Parts, work: Work) -> None:
    """Every start passes here, resumed or not: what a GPU does fastest is chosen, then the memory tried with that.

    Raises OutOfMemoryError, the same on every rank, if the worst batch does not fit on one of them; ConfigError where
    compile=true does not work.
    """
    assert work.train is not None
    if len(work.train) < run.total_batch_size:
        return  # the first epoch refuses it
    trial, size = Trial(run, parts, work), run.config.schedule.batch_size
    if run.device.type == "cuda":
        choose_for_gpu(trial)
    outcomes = trial.outcomes(size)
    if not fit(outcomes):
        raise OutOfMemoryError(trial.advice(outcomes))
    run.peak_memory_bytes = max(peak for peak in outcomes if isinstance(peak, int))
    kind = "GPU" if run.device.type == "cuda" else "CPU"
    work.progress.say(
        f"worst batch: {trial.worst(size)}: peak memory {memory.shown(run.peak_memory_bytes)} of "
        f"{memory.shown(memory.limit_bytes(run.device))} ({kind})"
    )
    if run.config.compile:
        compile_training(trial)


def choose_for_gpu(trial: Trial) -> None:
    """Measure, on the worst batch: how the backbone's activations lie best, and which path attention takes."""
    run, model = trial.run, trial.parts.model
    assert isinstance(model, DETR)
    worst = trial.worst(run.config.schedule.batch_size)
    batch = worst.made_up()[0].to(run.device)
    model.backbone.channels_last = pays_channels_last(
        model.backbone, normalised(batch.images, batch.sizes_hw), run.config.precision
    )
    del batch
    trial.attempt(worst)  # attention chooses in its first pass, and the trial of the memory is to come without that
    chosen = [f"channels {'last' if model.backbone.channels_last else 'first'} in the backbone", *choices()]
    trial.work.progress.say(f"measured on this GPU: {', '.join(chosen)}")


def compile_training(trial: Trial) -> None:
    """compile=true: each node's first rank fills the compiler's cache on disk, the others take it from there."""
    # inductor's gradients of 1x1 convolutions write their strides in another way; DDP copies them, and remarks on it.
    warnings.filterwarnings("ignore", message="(?s).*Grad strides do not match bucket view strides")
    run, model = trial.run, trial.parts.model
    assert isinstance(model, DETR)
    size = run.config.schedule.batch_size
    longest = max(trial.worst(size).padded_hw)
    with memory.shortage_named("the warm-up of compile=true"):
        done = distributed.first_on_node(
            lambda: compiled.compile_training(model, size, longest, run.device, run.config.precision)
        )
    trial.parts.compiled = done
    trial.work.progress.say(
        f"compiled backbone and encoder for training: {done.graphs} graphs in {done.seconds:.0f} s; training images "
        f"are padded to multiples of {model.sides_multiple} px"
    )


@dataclass(frozen=True)
class Trial:
    """Of one run on this rank; all but `attempt`, `attempt_here` and `worst` is to be called by all ranks together."""

    run: Run
    parts: Parts
    work: Work
    _worst: dict[int, WorstBatch] = field(default_factory=dict)  # by batch size: half a second each on COCO

    def worst(self, batch_size: int) -> WorstBatch:
        assert self.work.train is not None
        if batch_size not in self._worst:
            self._worst[batch_size] = worst_batch(self.work.train, batch_size)
        return self._worst[batch_size]

    def outcomes(self, batch_size: int) -> list[Outcome]:
        """Each rank's, by its number."""
        return distributed.gather(self.attempt(self.worst(batch_size)))

    def attempt(self, worst: WorstBatch) -> Outcome:
        """This rank's. On a CPU a child process': where memory is out, not all that torch calls looks at what it got,
        and a control group ends the process that took too much."""
        if self.run.device.type != "cpu" or not CAN_FORK:
            return self.attempt_here(worst)
        files = memory.file_bytes()
        try:
            return in_child(lambda: self.attempt_twice(worst, files))
        except ChildKilled as killed:
            return str(killed)
        except ChildFailed:
            return self.attempt_here(worst)

    def attempt_twice(self, worst: WorstBatch, files: int) -> Outcome:
        """In a copy of a process with this many bytes of files in memory, which are not the copy's before it touches
        them. The second step finds the memory in the pieces that the first one has left."""
        outcome = self.attempt_here(worst)
        if isinstance(outcome, int):
            outcome = self.attempt_here(worst)
        return outcome if isinstance(outcome, str) else outcome + max(0, files - memory.file_bytes())

    def attempt_here(self, worst: WorstBatch) -> Outcome:
        """The bare model, and no collective: one rank may fail where the others do not."""
        device, said = self.run.device, None
        older_than_the_step = torch.ones((), requires_grad=True) * 1
        memory.restart_peak(device)
        try:
            with left_as_it_was(self.parts.model, device), distributed.alone():
                self.step(worst)
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
            said = memory.words(error)
        if said is None:
            return memory.peak_bytes(device)
        # A backward pass that failed leaves its tasks, and so its tensors, in autograd's queue of this thread: the next
        # one throws them away before it comes to what is older.
        older_than_the_step.backward()
        memory.release(device)  # only here: the exception, whose frames held the tensors, is gone
        return said

    def step(self, worst: WorstBatch) -> None:
        """Forward, loss and backward of a made-up batch."""
        device, model = self.run.device, self.parts.model
        held = still_to_come(self.parts, device)
        batch, targets = worst.made_up()
        model.train()
        with autocast(device, self.run.config.precision):
            predictions = model(batch.to(device))
        with suppress(NonFiniteError):  # broken weights: the first step says so, and of which images
            self.work.criterion(predictions, targets).total.backward()
        held.clear()

    def largest_that_fits(self, too_large: int) -> int:
        """A batch size below that fits on every rank with a tenth to spare, the largest within a tenth; 0 if none does.

        To spare, because thousands of steps leave memory in more pieces than a try does, and no two processes alike.
        Doubled from 1, then by bisection: most tries are small ones, and quick.
        """
        fits, refused = 0, too_large
        while too_large - fits > max(1, fits // 10):
            size = min(max(1, 2 * fits), (fits + too_large) // 2)
            tried = size + size // 10
            fits, too_large = (size, too_large) if tried < refused and fit(self.outcomes(tried)) else (fits, size)
        return fits

    def advice(self, outcomes: list[Outcome]) -> str:
        """The line for a run whose batch did not fit, the same on every rank."""
        config, total, world = self.run.config, self.run.total_batch_size, len(outcomes)
        rank, said = next((i, outcome) for i, outcome in enumerate(outcomes) if isinstance(outcome, str))
        limit = memory.shown(distributed.gather(memory.limit_bytes(self.run.device))[rank])
        fits = self.largest_that_fits(config.schedule.batch_size)
        memory_of = f"{'the GPU' if self.run.device.type == 'cuda' else 'the memory'}{f' of rank {rank}' * (world > 1)}"
        line = f"the worst batch ({self.worst(config.schedule.batch_size)}) does not fit into {memory_of} ({limit}): "
        if fits == 0:
            smaller = ["precision=bf16"] * (config.precision == "fp32") + ["model.dc5=false"] * config.model.dc5
            remedies = ", ".join([*smaller, "a smaller model (model.backbone)", "smaller images"])
            return f"{line}not even one image does ({said}); choose among {remedies}"
        kept = max(size for size in range(1, fits + 1) if total % size == 0)
        return (
            f"{line}schedule.batch_size={fits} fits (tried), a total batch of {fits * world} instead of {total}; to "
            f"keep {total}, take schedule.batch_size={kept} and {total // kept} processes (cluster.gpus, cluster.nodes)"
        )


def fit(outcomes: list[Outcome]) -> bool:
    return all(isinstance(outcome, int) for outcome in outcomes)


def still_to_come(parts: Parts, device: torch.device) -> list[Tensor]:
    """Stand-ins for what training allocates after the first backward pass: AdamW's two moments of each parameter.

    On a CPU also DDP's buckets, the gradients once more: theirs is memory that is not resident before it is used,
    while a GPU's allocator has counted it.
    """
    trained = [p for group in parts.optimizer.param_groups for p in group["params"]]
    moments = [torch.zeros_like(p).fill_(1) for p in trained if not parts.optimizer.state.get(p) for _ in range(2)]
    has_buckets = parts.wrapped is not parts.model and device.type == "cpu"
    return moments + [torch.zeros_like(p).fill_(1) for p in trained if has_buckets]
