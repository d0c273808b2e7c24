"""`compile=true`: torch.compile for backbone and encoder, warmed up before the first step, with a count of graphs.

Only training is compiled, with the sides of its batches rounded up: evaluation runs eagerly on its own padding, which
AP depends on. The modules keep their names, so checkpoints are the same with and without.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fovea_detr.errors import ConfigError
from fovea_detr.machine.device import autocast, restored_afterwards
from fovea_detr.model.detr import DETR
from fovea_detr.runs.stop import signals_held_back
from fovea_detr.types import Batch

# Sides are rounded up to groups of 4 cells: few shapes occur, and the number of cells is a multiple of 16, so that the
# padding mask always has the alignment (8) that the GPU's attention kernels require.
CELLS = 4


class Compiled:
    """The graphs that torch.compile has made in this process. warm: at the end of the warm-up; graphs: so far."""

    def __init__(self) -> None:
        self.graphs = self.warm = 0
        self.seconds = 0.0

    def backend(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        """inductor, counted: torch.compile calls this for every graph, and again for every recompile."""
        function = torch._dynamo.lookup_backend("inductor")(graph, inputs)
        self.graphs += 1  # after the call: an attempt that inductor restarts does not count
        return function

    def counts(self) -> dict[str, int]:
        """The entries of the history's `timing`."""
        return {"compiled_graphs": self.graphs, "recompiles": self.graphs - self.warm}


def compile_training(model: DETR, batch_size: int, longest: int, device: torch.device, precision: str) -> Compiled:
    """Compile backbone and encoder in place and run them, forward and backward, over the range of image sizes.

    batch_size: images per process. longest: the longest possible side of an image, in pixels. Weights, statistics and
    random generators are unchanged. Raises ConfigError, one line, where torch.compile does not work.
    """
    compiled, start = Compiled(), time.monotonic()
    torch._dynamo.reset()  # the graphs of earlier runs in this process would count towards torch's limit
    model.sides_multiple = CELLS * model.backbone.stride
    shapes = warm_up_shapes(model.sides_multiple, longest)
    with eager():  # an error that has nothing to do with torch.compile keeps its traceback
        warm_up(model, batch_size, shapes[:1], device, precision)
    torch._dynamo.config.optimize_ddp = False  # one graph per module, with and without DDP
    torch._dynamo.config.specialize_float = True  # the only floats are constants: an epsilon, a dropout rate
    backend = compiled.backend
    for module in (model.backbone, model.encoder):
        module.compile(backend=backend, dynamic=True, fullgraph=True)  # fullgraph: no silent fall-back to eager
    try:
        with signals_held_back():  # inherited by the compiler's processes, which must survive a signal to the job
            warm_up(model, batch_size, shapes, device, precision)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ConfigError(refusal(error)) from error
    compiled.warm, compiled.seconds = compiled.graphs, time.monotonic() - start
    return compiled


def eager() -> Any:
    """A context in which compiled modules run eagerly."""
    return torch.compiler.set_stance("force_eager")


def warm_up_shapes(multiple: int, longest: int) -> list[tuple[int, int]]:
    """(height, width) in pixels from the smallest to the largest, doubling, portrait and landscape.

    One graph serves all shapes, unless inductor sets thresholds on sizes and makes a second one. The first shape is not
    square, because torch.compile would treat equal height and width as one dynamic size.
    """
    most, side, groups = -(-longest // multiple), 1, []
    while side < most:
        groups += [(side, min(2 * side, most)), (min(2 * side, most), side)]
        side *= 2
    return [(height * multiple, width * multiple) for height, width in [*groups, (most, most)]]


def warm_up(model: DETR, batch_size: int, shapes: list[tuple[int, int]], device: torch.device, precision: str) -> None:
    """Forward and backward in training mode at every shape (height, width), with images of zeros."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with restored_afterwards(model, device):
        model.train()
        for height, width in shapes:
            sizes_hw = torch.tensor([[height, width]] * batch_size)
            images = torch.zeros(batch_size, 3, height, width)
            with autocast(device, precision):
                predictions = model(Batch(images, sizes_hw, sizes_hw).to(device))
            total = predictions.logits.sum() + predictions.boxes_cxcywh.sum()
            torch.autograd.grad(total, trained, allow_unused=True)


def refusal(error: BaseException) -> str:
    """The error line: the compiler's first message, and what to do."""
    while (cause := error.__cause__ or getattr(error, "inner_exception", None)) is not None:
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    message = next((line for line in lines if "error:" in line), lines[0])
    missing = {r"C\+\+|Python\.h": "it needs g++ and Python's headers", r"[Tt]riton": "it needs a working triton"}
    need = next((f"; {what}" for pattern, what in missing.items() if re.search(pattern, str(error))), "")
    return f"compile=true: torch.compile does not work here ({message[:200]}){need}; use compile=false"
