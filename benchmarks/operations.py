"""Dispatched operations and allocations of one training step, by part; on a GPU most of them are a launch each.

    python -m benchmarks.operations [--record]

R50 with the defaults of `model=fovea_r50`, batch 2, 6 + 6 layers, 96x128 pixels: the attention of these 12 cells is one
tile, as every attention is on a GPU. `kernels` are operations that are no views; `casts`, of them, convert a type;
`views` cost the host, too; `allocations` are results in memory of their own. --record stores the counts
of ours in benchmarks/results/operations.json; tests/benchmarks/test_operations.py fails where a part has grown.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measure import ROOT
from benchmarks.step import R50, Sides

RECORDED = ROOT / "benchmarks" / "results" / "operations.json"
PRECISIONS = ("fp32", "bf16")
PARTS = ("backbone", "model", "criterion", "backward", "optimizer", "rest")  # model: without its backbone
SIZE_HW, BATCH = (96, 128), 2


@dataclass
class Count:
    """Of one part. casts are kernels, too."""

    kernels: int = 0
    views: int = 0
    casts: int = 0
    allocations: int = 0

    def add(self, func: Any) -> None:
        is_view = func.is_view or func._schema.name == "aten::_unsafe_view"  # a view that autograd may forget
        self.views += is_view
        self.kernels += not is_view
        self.casts += func._schema.name == "aten::_to_copy"
        fresh = [one for one in func._schema.returns if one.alias_info is None and "Tensor" in str(one.type)]
        self.allocations += 0 if is_view else len(fresh)


class ByPart(TorchDispatchMode):
    """Context that counts dispatched operations under the part that `of` has named."""

    def __init__(self) -> None:
        super().__init__()
        self.part = "rest"
        self.counts = {part: Count() for part in PARTS}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "profiler":
            self.counts[self.part].add(func)
        return func(*args, **(kwargs or {}))

    def of(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            outer, self.part = self.part, part
            try:
                return work(*args, **kwargs)
            finally:
                self.part = outer

        return counted


@contextmanager
def counting(
    model: nn.Module, backbone: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[ByPart]:
    """Context that counts by part what is dispatched in it."""
    mode = ByPart()
    places: list[tuple[str, Any, str]] = [
        ("model", model, "forward"),
        ("backbone", backbone, "forward"),
        ("criterion", criterion, "forward"),
        ("backward", torch.Tensor, "backward"),
        ("optimizer", optimizer, "step"),
        ("optimizer", nn.utils, "clip_grad_norm_"),
    ]
    with ExitStack() as stack:
        for part, owner, name in places:
            stack.enter_context(patch.object(owner, name, mode.of(part, getattr(owner, name))))
        yield stack.enter_context(mode)


def count(overrides: list[str], side: str = "ours") -> dict[str, Count]:
    """One step, after one that creates the optimizer's state. side: ours or plain."""
    sides = Sides([*R50, *overrides], SIZE_HW, BATCH, side=side)
    step = getattr(sides, side)
    step()
    if side == "ours":
        parts = sides.trainer.wrapped, sides.model.backbone, sides.trainer.criterion, sides.optimizer
    else:
        backbone = sides.plain_model.backbone["body"]
        parts = sides.plain_wrapped, backbone, sides.plain_criterion, sides.plain_optimizer
    with counting(*parts) as mode:
        step()
    return mode.counts


def rows(runs: int = 1) -> list[dict[str, Any]]:  # noqa: ARG001 - counts are exact
    """A row per precision and part: kernels and views together, and what they are in the note."""
    found = []
    for precision in PRECISIONS:
        plain, ours = (count([f"precision={precision}"], side) for side in ("plain", "ours"))
        for part in PARTS:
            slow, fast = (one[part].kernels + one[part].views for one in (plain, ours))
            note = ", ".join(f"{value} {name}" for name, value in asdict(ours[part]).items())
            row = {"part": f"operations of a step, {precision}: {part}", "plain": slow, "ours": fast, "note": note}
            found.append({**row, "ratio": slow / fast if fast else None})
    return found


def recorded() -> dict[str, Any]:
    """The stored counts by precision, part and kind, and torch's version."""
    return json.loads(RECORDED.read_text())


def main() -> None:
    torch.set_num_threads(1)
    counts = {precision: count([f"precision={precision}"]) for precision in PRECISIONS}
    print(f"{'':16}" + "".join(f"{name:>13}" for name in asdict(Count())))
    for precision, by_part in counts.items():
        for part, one in by_part.items():
            print(f"{precision} {part:<11}" + "".join(f"{value:13d}" for value in asdict(one).values()))
        totals = [sum(asdict(one)[name] for one in by_part.values()) for name in asdict(Count())]
        print(f"{precision} {'all':<11}" + "".join(f"{value:13d}" for value in totals))
    if "--record" in sys.argv[1:]:
        content = {"torch": torch.__version__.split("+")[0]}
        content |= {name: {part: asdict(one) for part, one in found.items()} for name, found in counts.items()}
        RECORDED.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
