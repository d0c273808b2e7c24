"""`compile=true`: backbone and encoder through torch.compile, warmed up before the first step, every graph counted.

Training alone is compiled, with the sides of its batches rounded up: evaluation runs the plain modules on its own
padding, which AP depends on. The modules keep their names, so that a checkpoint is the same with and without.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fovea_detr.errors import ConfigError
from fovea_detr.machine.device import autocast, left_as_it_was
from fovea_detr.model.detr import DETR
from fovea_detr.runs.stop import signals_held_back
from fovea_detr.types import Batch

# Sides are rounded up to whole groups of 4 cells: few shapes occur, and the number of cells is a multiple of 16, so
# that the alignment of the padding mask, which the GPU's attention kernels ask for (8), never depends on the shape.
CELLS = 4


class Compiled:
    """What torch.compile has done in this process. warm: graphs at the end of the warm-up; graphs: so far."""

    def __init__(self) -> None:
        self.graphs = self.warm = 0
        self.seconds = 0.0

    def backend(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        """inductor, counted: torch.compile hands every graph over that it has to compile, and again at a recompile."""
        function = torch._dynamo.lookup_backend("inductor")(graph, inputs)
        self.graphs += 1  # here: an attempt that inductor gives up and starts again is no graph
        return function

    def counts(self) -> dict[str, int]:
        """For the history's `timing`."""
        return {"compiled_graphs": self.graphs, "recompiles": self.graphs - self.warm}


def compile_training(model: DETR, batch_size: int, longest: int, device: torch.device, precision: str) -> Compiled:
    """Compile backbone and encoder in place and try them, forward and backward, at every order of size.

    batch_size: images of a process; longest: the longest side that they can have, in pixels.
    Raises ConfigError, one line, where torch.compile does not work. Weights, statistics and random numbers stay.
    """
    compiled, start = Compiled(), time.monotonic()
    torch._dynamo.reset()  # what runs before this one in the process have compiled counts towards torch's limit
    model.sides_multiple = CELLS * model.backbone.stride
    shapes = warm_up_shapes(model.sides_multiple, longest)
    with plain():
        warm_up(
            model, batch_size, shapes[:1], device, precision
        )  # what is wrong without torch.compile keeps its traceback
    torch._dynamo.config.optimize_ddp = False  # one graph a module, whether DDP is there or not
    torch._dynamo.config.specialize_float = True  # the only floats are constants, an epsilon, a dropout's rate
    backend = compiled.backend
    for module in (model.backbone, model.encoder):
        module.compile(backend=backend, dynamic=True, fullgraph=True)  # fullgraph: no silent return to eager
    try:
        with signals_held_back():  # the compiler's own processes inherit it, and outlive a signal that is sent to all
            warm_up(model, batch_size, shapes, device, precision)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ConfigError(refusal(error)) from error
    compiled.warm, compiled.seconds = compiled.graphs, time.monotonic() - start
    return compiled


def plain() -> Any:
    """A context in which the modules run as if they had not been compiled."""
    return torch.compiler.set_stance("force_eager")


def warm_up_shapes(multiple: int, longest: int) -> list[tuple[int, int]]:
    """(height, width) in pixels from the smallest to the largest, doubling, tall and wide.

    One graph serves all shapes, but for thresholds on sizes that inductor may have set: it then makes a second one. The
    first shape is not square, for equal sizes would be taken for one.
    """
    most, side, groups = -(-longest // multiple), 1, []
    while side < most:
        groups += [(side, min(2 * side, most)), (min(2 * side, most), side)]
        side *= 2
    return [(height * multiple, width * multiple) for height, width in [*groups, (most, most)]]


def warm_up(model: DETR, batch_size: int, shapes: list[tuple[int, int]], device: torch.device, precision: str) -> None:
    """Forward and backward in training mode at every shape (height, width), with images of zeros."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with left_as_it_was(model, device):
        model.train()
        for height, width in shapes:
            sizes_hw = torch.tensor([[height, width]] * batch_size)
            images = torch.zeros(batch_size, 3, height, width)
            with autocast(device, precision):
                predictions = model(Batch(images, sizes_hw, sizes_hw).to(device))
            total = predictions.logits.sum() + predictions.boxes_cxcywh.sum()
            torch.autograd.grad(total, trained, allow_unused=True)


def refusal(error: BaseException) -> str:
    """The line for a user: what the compiler said first, and what to do."""
    while (cause := error.__cause__ or getattr(error, "inner_exception", None)) is not None:
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = next((line for line in lines if "error:" in line), lines[0])
    missing = {r"C\+\+|Python\.h": "it needs g++ and Python's headers", r"[Tt]riton": "it needs a working triton"}
    need = next((f"; {what}" for pattern, what in missing.items() if re.search(pattern, str(error))), "")
    return f"compile=true: torch.compile does not work here ({said[:200]}){need}; use compile=false"
