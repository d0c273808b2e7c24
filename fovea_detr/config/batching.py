"""How the images of one optimizer step are divided among processes and micro-batches. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from fovea_detr.config.schema import Config
from fovea_detr.errors import ConfigError


@dataclass(frozen=True)
class Batching:
    """images: of one forward pass. A process accumulates the gradients of its micro-batches before each step."""

    processes: int
    micro_batches: int
    images: int

    @classmethod
    def of(cls, config: Config, processes: int) -> Batching:
        """With `total_batch`, the fewest micro-batches of at most `batch_size` images; else one of `batch_size`.

        An evaluation has no step, and so no total batch to keep. Raises ConfigError if the processes cannot share it
        equally.
        """
        total, largest = config.schedule.total_batch, config.schedule.batch_size
        if total is None or config.mode == "eval":
            return cls(processes, 1, largest)
        own, rest = divmod(total, processes)
        if rest or not own:
            fitting = ", ".join(str(n) for n in range(1, total + 1) if total % n == 0)
            raise ConfigError(
                f"schedule.total_batch={total} cannot be shared equally by {processes} processes: start one of "
                f"{fitting} processes (cluster.gpus x cluster.nodes), or choose another total batch"
            )
        images = max(size for size in range(1, min(own, largest) + 1) if own % size == 0)
        return cls(processes, own // images, images)

    @property
    def per_process(self) -> int:
        """Images of one step on one process."""
        return self.micro_batches * self.images

    @property
    def total(self) -> int:
        """Images of one step."""
        return self.processes * self.per_process

    def __str__(self) -> str:
        several = f" x {self.micro_batches} micro-batches" if self.micro_batches > 1 else ""
        return (
            f"{self.processes} process{'es' if self.processes > 1 else ''}{several} x {self.images} images = "
            f"total batch {self.total}"
        )
