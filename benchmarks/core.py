"""Time and memory of the decoder's prior and cross-attention: ours against the plain implementation.

`core`: from projected queries, keys, values and the centres to the attended values; only here the two sides differ.
`layer`: the whole cross-attention, with the prior's norm and MLP and all projections, which both compute equally.
Batch 2, 300 queries, width 256, 8 heads, float32, one image padded; gradients for every input and weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import DEFAULT_MALLOC, GIVEN_BACK, KEPT, MIB, Side, fresh, in_turn, peak_bytes
from benchmarks.plain.attention import PlainCrossAttention, PlainPrior, cells_xy, log_prior
from benchmarks.plain.attention import attend as plainly_attend
from fovea_detr.fovea.attend import attend
from fovea_detr.fovea.dynamic_scale import Type1, Type2, Type3, Type4
from fovea_detr.fovea.prior import CellGrid, FoveaPrior
from fovea_detr.model.attention import CrossAttention, for_layers
from fovea_detr.model.transformer import FeedForward

BATCH, QUERIES, HIDDEN, HEADS, STRIDE, SMOOTH = 2, 300, 256, 8, 32, 8.0
TYPES = {"type1": Type1, "type2": Type2, "type3": Type3, "type4": Type4}
ROWS, COLUMNS = 32, 42
INFERENCE = {"type1": 9.0, "type2": 9.0, "type3": 9.0, "type4": 13.0}  # the prototype's ratios
TRAINING = {("type3", 0.0): (4.5, 0.34), ("type4", 0.0): (9.6, 0.23), ("type3", 0.1): (3.0, 0.48)}
TRAINING |= {("type4", 0.1): (6.0, 0.3)}  # with their memory
LAYER = {"type3": (2.0, 0.5), "type4": (5.0, 0.33)}


@dataclass
class Case:
    """Modules of both sides with equal weights, and inputs; every floating-point input gets a gradient."""

    kind: str
    grid: CellGrid
    prior: FoveaPrior
    attention: CrossAttention
    plain_prior: PlainPrior
    plain_attention: PlainCrossAttention
    content: Tensor
    query_embed: Tensor
    memory: Tensor
    places: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    centres: Tensor  # [B, H, Q, 2]
    sizes_hw: Tensor
    is_padding: Tensor
    dropout: float

    def core_ours(self) -> Tensor:
        prior = self.prior.log_prior(self.content, self.centres, self.grid)
        return attend(self.q, self.k, self.v, prior, self.dropout)

    def core_plain(self) -> Tensor:
        plain, scales = self.plain_prior, None
        if plain.dynamic_scale:
            scales = plain.last(plain.dynamic_scale["scale"](self.content))
        cells = cells_xy(self.grid.rows, self.grid.columns, self.content.device)
        centres = self.centres.permute(2, 0, 1, 3).flatten(1, 2)
        prior = log_prior(self.kind, centres, scales, cells, SMOOTH)
        return plainly_attend(self.q, self.k, self.v, prior, self.is_padding, self.dropout)[0]

    def layer_ours(self) -> Tensor:
        prior, _ = self.prior(self.content, self.query_embed, None, self.sizes_hw, self.grid)
        queries, keys, values = (self.content + self.query_embed, self.places, self.memory)
        (seen,) = for_layers([self.attention], keys.flatten(0, 1), values.flatten(0, 1), len(keys))
        return self.attention(queries.flatten(0, 1), seen, prior=prior).view_as(queries)

    def layer_plain(self) -> Tensor:
        embed = self.query_embed[None].repeat(len(self.content), 1, 1)
        cells = cells_xy(self.grid.rows, self.grid.columns, self.content.device)
        extent = self.sizes_hw.flip(-1).float()[:, None] / STRIDE
        prior, _ = self.plain_prior(self.content, embed, None, extent, cells)
        return self.plain_attention(self.content + embed, self.places, self.memory, prior, self.is_padding)


def build(
    kind: str,
    rows: int = ROWS,
    columns: int = COLUMNS,
    *,
    batch: int = BATCH,
    queries: int = QUERIES,
    dropout: float = 0.0,
    device: str = "cpu",
) -> Case:
    torch.manual_seed(0)
    mlp = FeedForward(HIDDEN, HIDDEN, 2, num_layers=3)
    prior = FoveaPrior(HIDDEN, HEADS, TYPES[kind](HIDDEN, HEADS), SMOOTH, mlp)
    for parameter in prior.dynamic_scale.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.02)
    attention = CrossAttention(HIDDEN, HEADS, dropout)
    plain_prior = PlainPrior(kind, HIDDEN, HEADS, SMOOTH, first=True)
    plain_attention = PlainCrossAttention(HIDDEN, HEADS, dropout)
    plain_prior.load_state_dict(prior.state_dict())
    plain_attention.load_state_dict(attention.state_dict())

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).requires_grad_()

    of_rows, of_columns = (torch.zeros(batch, side, dtype=torch.bool, device=device) for side in (rows, columns))
    of_columns[-1, columns * 3 // 4 :] = batch > 1
    sizes = torch.tensor([[rows, columns]] * (batch - 1) + [[rows, columns * 3 // 4 if batch > 1 else columns]])
    width, cells = HIDDEN // HEADS, rows * columns
    centres = torch.rand(batch, HEADS, queries, 2) * torch.tensor([columns, rows])
    grid = CellGrid(rows, columns, STRIDE, of_rows, of_columns)
    is_padding = grid.is_padding()
    assert is_padding is not None
    return Case(
        kind,
        grid,
        prior.to(device),
        attention.to(device),
        plain_prior.to(device),
        plain_attention.to(device),
        content=leaf(batch, queries, HIDDEN),
        query_embed=leaf(queries, HIDDEN),
        memory=leaf(batch, cells, HIDDEN),
        places=leaf(batch, cells, HIDDEN),
        q=leaf(batch, HEADS, queries, width),
        k=leaf(batch, HEADS, cells, width),
        v=leaf(batch, HEADS, cells, width),
        centres=centres.to(device).requires_grad_(),
        sizes_hw=(sizes * STRIDE).to(device),
        is_padding=is_padding.flatten(1),
        dropout=dropout,
    )


def forward_backward(side: Side) -> None:
    out = side()
    assert isinstance(out, Tensor)
    out.square().mean().backward()


def times(
    kind: str, what: str, runs: int, *, inference: bool = False, equal_arithmetic: bool = False, **sizes: Any
) -> tuple[float, float]:
    """what: "core" or "layer" -> median seconds of the plain side and of ours; equal_arithmetic: see `in_turn`."""
    case = build(kind, **sizes)
    plain, ours = getattr(case, f"{what}_plain"), getattr(case, f"{what}_ours")
    device = case.content.device
    if inference:
        with torch.no_grad():
            return in_turn(plain, ours, runs, device, equal_arithmetic=equal_arithmetic)
    sides = (lambda: forward_backward(plain)), (lambda: forward_backward(ours))
    return in_turn(*sides, runs, device, equal_arithmetic=equal_arithmetic)


def peak(kind: str, what: str, side: str, **sizes: Any) -> int:
    """Bytes of one forward and backward pass, after a warm-up pass on a 2 x 2 map."""
    forward_backward(getattr(build(kind, **{**sizes, "rows": 2, "columns": 2}), f"{what}_{side}"))
    case = build(kind, **sizes)
    return peak_bytes(lambda: forward_backward(getattr(case, f"{what}_{side}")), case.content.device)


def rows(runs: int, device: str = "cpu") -> list[dict[str, Any]]:
    found = [_inference_row(kind, runs, device) for kind in TYPES]
    for (kind, dropout), (prototype, memory) in TRAINING.items():
        found.append(_training_row("core", kind, dropout, prototype, memory, runs, device))
    for kind, (prototype, memory) in LAYER.items():
        found.append(_training_row("layer", kind, 0.0, prototype, memory, runs, device))
    return found


def _inference_row(kind: str, runs: int, device: str) -> dict[str, Any]:
    measured = _measured(kind=kind, what="core", runs=runs, inference=True, device=device)
    return {
        **_row(f"prior + attention core, {kind}, inference, {ROWS}x{COLUMNS}", *measured),
        "prototype": INFERENCE[kind],
    }


def _training_row(
    what: str, kind: str, dropout: float, prototype: float, memory: float, runs: int, device: str
) -> dict[str, Any]:
    common = {"kind": kind, "what": what, "dropout": dropout, "device": device}
    measured = _measured(runs=runs, **common)
    peaks = [fresh("benchmarks.core:peak", GIVEN_BACK, side=side, **common) / MIB for side in ("plain", "ours")]
    name = "prior + attention core" if what == "core" else "whole cross-attention"
    row = _row(f"{name}, {kind}, forward + backward, dropout {dropout:g}, {ROWS}x{COLUMNS}", *measured)
    return {**row, "prototype": prototype, "memory": peaks, "memory_prototype": memory}


def _measured(**arguments: Any) -> tuple[float, float, str]:
    """The result of `times`, and the note."""
    plain, ours = fresh("benchmarks.core:times", DEFAULT_MALLOC, **arguments)
    if arguments["device"] != "cpu":
        return plain, ours, ""
    alone = fresh("benchmarks.core:times", KEPT, equal_arithmetic=True, **arguments)
    return plain, ours, f"{alone[0] / alone[1]:.1f} without denormals and with an allocator that keeps memory"


def _row(part: str, plain: float, ours: float, note: str = "") -> dict[str, Any]:
    return {"part": part, "plain": 1e3 * plain, "ours": 1e3 * ours, "unit": "ms", "ratio": plain / ours, "note": note}
