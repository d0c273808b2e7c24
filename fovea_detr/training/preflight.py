"""Preflight: before the first step, run the largest batch once, then restore everything.

On a GPU the fastest variants are chosen first, and a batch that does not fit ends the run with the batch size that
does. On a CPU the peak memory is reported.
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
from fovea_detr.machine.device import autocast, restored_afterwards
from fovea_detr.model.detr import DETR
from fovea_detr.model.memory_format import pays_channels_last
from fovea_detr.model.pixels import normalised
from fovea_detr.training import compiled
from fovea_detr.training.loop import Trainer

Outcome = int | str  # of one attempt on one rank: the peak in bytes, or the message of the exhausted allocator


def before_first_step(trainer: Trainer) -> None:
    """Every start calls this, resumed or not: choose what is fastest on a GPU, then check the memory with it.

    Raises OutOfMemoryError, the same on every rank, if the largest batch does not fit on one of them; ConfigError where
    compile=true does not work.
    """
    assert trainer.train is not None
    if len(trainer.train.dataset) < trainer.state.total_batch_size:
        return  # the first epoch fails with an error that names both numbers
    preflight, on_gpu = Preflight(trainer), trainer.device.type == "cuda"
    if on_gpu:
        preflight.choose_for_gpu()
    outcomes = preflight.outcomes(trainer.batching.images)
    if not fit(outcomes):
        raise OutOfMemoryError(preflight.advice(outcomes))
    trainer.peak_memory_bytes = max(peak for peak in outcomes if isinstance(peak, int))
    of = f" of {memory.format_bytes(memory.gpu_bytes(trainer.device))} (GPU)" if on_gpu else " (CPU)"
    peak = f"peak memory {memory.format_bytes(trainer.peak_memory_bytes)}{of}"
    trainer.console.log(f"worst batch: {preflight.worst(trainer.batching.images)}: {peak}")
    if trainer.config.compile:
        preflight.compile_training()


@dataclass(frozen=True)
class Preflight:
    """The preflight of one run on this rank. All ranks call its methods, except `attempt`, `step` and `worst`."""

    trainer: Trainer
    _worst: dict[int, WorstBatch] = field(default_factory=dict)  # by batch size: each takes 0.5 s on COCO

    def worst(self, batch_size: int) -> WorstBatch:
        """The batch of this size that needs the most memory."""
        assert self.trainer.train is not None
        if batch_size not in self._worst:
            self._worst[batch_size] = worst_batch(self.trainer.train.dataset, batch_size)
        return self._worst[batch_size]

    def choose_for_gpu(self) -> None:
        """Measure on the largest batch: the backbone's memory format, and the path of the attention."""
        trainer, model = self.trainer, self.trainer.state.model
        assert isinstance(model, DETR)
        worst = self.worst(trainer.batching.images)
        batch = worst.made_up()[0].to(trainer.device)
        images = normalised(batch.images, batch.sizes_hw)
        model.backbone.channels_last = pays_channels_last(model.backbone, images, trainer.config.precision)
        averaged = model if trainer.state.average is None else trainer.state.average.model
        assert isinstance(averaged, DETR)
        averaged.backbone.channels_last = model.backbone.channels_last
        del batch, images
        self.attempt(worst)  # attention measures its paths in its first pass, which the memory check must not include
        chosen = [f"channels {'last' if model.backbone.channels_last else 'first'} in the backbone", *choices()]
        trainer.console.log(f"measured on this GPU: {', '.join(chosen)}")

    def outcomes(self, batch_size: int) -> list[Outcome]:
        """Each rank's outcome with a batch of this size, in the order of the ranks."""
        return distributed.gather(self.attempt(self.worst(batch_size)))

    def attempt(self, worst: WorstBatch) -> Outcome:
        """One forward and backward pass on this rank. The bare model and no collective: one rank alone may fail."""
        device = self.trainer.device
        memory.restart_peak(device)
        try:
            with restored_afterwards(self.trainer.state.model, device), distributed.alone():
                self.step(worst)
            return memory.peak_bytes(device)
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
            message = memory.first_line(error)
        memory.release(device)  # after the block: the exception's frames refer to the tensors
        return message

    def step(self, worst: WorstBatch) -> None:
        """Forward, loss and backward of a made-up batch."""
        trainer, model = self.trainer, self.trainer.state.model
        reserved = optimizer_memory(trainer.state.optimizer)
        if trainer.batching.micro_batches > 1:  # the gradients of the micro-batch before
            reserved += [torch.zeros_like(parameter).fill_(1) for parameter in trained_by(trainer.state.optimizer)]
        batch, targets = worst.made_up()
        model.train()
        with autocast(trainer.device, trainer.config.precision):
            predictions = model(batch.to(trainer.device))
        with suppress(NonFiniteError):  # broken weights: the first step reports them with its images
            trainer.criterion(predictions, targets).total.backward()
        reserved.clear()

    def largest_that_fits(self, too_large: int) -> int:
        """A batch size below `too_large` that fits on every rank with a tenth to spare, within a tenth of the largest.

        0 if none does. To spare, because thousands of steps fragment the memory more than one attempt does. Doubled
        from 1, then by bisection: most attempts are small and fast.
        """
        fits, refused = 0, too_large
        while too_large - fits > max(1, fits // 10):
            size = min(max(1, 2 * fits), (fits + too_large) // 2)
            tried = size + size // 10
            fits, too_large = (size, too_large) if tried < refused and fit(self.outcomes(tried)) else (fits, size)
        return fits

    def advice(self, outcomes: list[Outcome]) -> str:
        """The error line for a batch that did not fit, the same on every rank. On a GPU it names one that does."""
        trainer, world = self.trainer, len(outcomes)
        config, device, total = trainer.config, trainer.device, trainer.state.total_batch_size
        rank, message = next((i, outcome) for i, outcome in enumerate(outcomes) if isinstance(outcome, str))
        of_rank = f" of rank {rank}" if world > 1 else ""
        line = f"the worst batch ({self.worst(trainer.batching.images)}) does not fit into "
        if device.type != "cuda":
            return f"{line}the memory{of_rank} ({message}): lower schedule.batch_size"
        size = memory.format_bytes(distributed.gather(memory.gpu_bytes(device))[rank])
        line += f"the GPU{of_rank} ({size}): "
        fits = self.largest_that_fits(trainer.batching.images)
        if fits == 0:
            smaller = ["precision=bf16"] * (config.precision == "fp32") + ["model.dc5=false"] * config.model.dc5
            remedies = ", ".join([*smaller, "a smaller model (model.backbone)", "smaller images"])
            return f"{line}not even one image does ({message}); choose among {remedies}"
        if config.schedule.total_batch is not None:
            return (
                f"{line}schedule.batch_size={fits} fits (tried); the total batch stays {total}, in more micro-batches; "
                f"keep evaluation.batch_size={config.evaluation.batch_size}, for AP depends on it"
            )
        kept = max(size for size in range(1, fits + 1) if total % size == 0)
        return (
            f"{line}schedule.batch_size={fits} fits (tried), a total batch of {fits * world} instead of {total}; to "
            f"keep {total}, take schedule.batch_size={kept} and {total // kept} processes (cluster.gpus, cluster.nodes)"
        )

    def compile_training(self) -> None:
        """compile=true: each node's first rank fills the compiler's cache on disk, the others read it."""
        # inductor's gradients of 1x1 convolutions have other strides than DDP's buckets; DDP copies them, and warns.
        warnings.filterwarnings("ignore", message="(?s).*Grad strides do not match bucket view strides")
        trainer, model = self.trainer, self.trainer.state.model
        assert isinstance(model, DETR)
        size, precision = trainer.batching.images, trainer.config.precision
        longest = max(self.worst(size).padded_hw)
        with memory.out_of_memory_as_error("the warm-up of compile=true"):
            done = distributed.first_on_node(
                lambda: compiled.compile_training(model, size, longest, trainer.device, precision)
            )
        trainer.compiled = done
        trainer.console.log(
            f"compiled backbone and encoder for training: {done.graphs} graphs in {done.seconds:.0f} s; training "
            f"images are padded to multiples of {model.sides_multiple} px"
        )


def fit(outcomes: list[Outcome]) -> bool:
    """Whether the batch fits on every rank."""
    return all(isinstance(outcome, int) for outcome in outcomes)


def optimizer_memory(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Stand-ins for what the first step allocates after its backward pass: AdamW's two moments of each parameter."""
    missing = [parameter for parameter in trained_by(optimizer) if not optimizer.state.get(parameter)]
    return [torch.zeros_like(parameter).fill_(1) for parameter in missing for _ in range(2)]


def trained_by(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
