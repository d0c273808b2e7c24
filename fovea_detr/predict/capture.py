"""Capture every decoder layer's prior and cross-attention from the model's own modules, with hooks.

Only the softmax is computed again, because `scaled_dot_product_attention` does not return it; a test checks that the
softmax times the values equals the module's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fovea_detr.fovea.prior import CellGrid, FoveaPrior, Reference
from fovea_detr.fovea.separable import Separable
from fovea_detr.model.attention import CrossAttention, ForLayer
from fovea_detr.model.detr import DETR
from fovea_detr.model.transformer import DecoderLayer
from fovea_detr.types import Batch, Predictions


@dataclass(frozen=True)
class LayerMaps:
    """One decoder layer's maps of one image, without padding cells.

    attention: [H, Q, rows, columns]. log_prior: the same shape, or None (plain DETR). has_prior: [H, Q] bool, the heads
    and queries with a prior; elsewhere log_prior is 0. log_prior_at(head, query, x, y): the same formula at any
    positions, x [n] and y [m] in cells from the image's left and top edge -> [m, n]; None where log_prior is None.
    centres_cells: [H, Q, 2], the (x, y) at which each head's prior is highest, in the same unit; None without priors.
    """

    attention: Tensor
    log_prior: Tensor | None
    has_prior: Tensor
    log_prior_at: Callable[[int, int, Tensor, Tensor], Tensor] | None = None
    centres_cells: Tensor | None = None


@dataclass(frozen=True)
class Capture:
    """One forward pass, for one image. predictions: B = 1. stride: pixels per cell of the resized image.

    first_cell: the position of cell 0 in cells from the image's edge, 0.5 with fovea.cell_centre=true, otherwise 0.
    """

    predictions: Predictions
    layers: list[LayerMaps]
    stride: int
    size_hw: tuple[int, int]  # of the resized image, without padding
    first_cell: float = 0.0


@torch.no_grad()
def capture(model: DETR, batch: Batch, image: int = 0) -> Capture:
    """Run the model on a batch, in eval mode; keep the maps and predictions of one image."""
    grids: list[CellGrid] = []
    with _hooks(model, grids) as captured:
        predictions = model.eval()(batch)
    (grid,) = grids
    layers = [_layer_maps(kept, grid, image) for kept in captured]
    own = slice(image, image + 1)
    predictions = Predictions(predictions.logits[:, own], predictions.boxes_cxcywh[:, own], predictions.activation)
    height, width = batch.sizes_hw[image].tolist()
    prior = captured[0]["prior"]
    return Capture(predictions, layers, grid.stride, (height, width), 0.0 if prior is None else prior.first_cell)


@contextmanager
def _hooks(model: DETR, grids: list[CellGrid]) -> Iterator[list[dict[str, Any]]]:
    """Context in which a forward pass fills `grids` and, per decoder layer, a dict.

    The dict holds `prior` (the module, or None), `attention`, and with a prior `log_prior`, `z` and `reference`.
    """
    layers = [layer for layer in model.decoder.layers if isinstance(layer, DecoderLayer)]
    captured: list[dict[str, Any]] = [{"prior": layer.prior} for layer in layers]

    def of_attention(kept: dict[str, Any]) -> Any:
        return lambda module, inputs, options, _: kept.update(attention=attention_weights(module, *inputs, **options))

    def of_prior(kept: dict[str, Any]) -> Any:
        return lambda _, __, output: kept.update(log_prior=output[0].dense(), reference=output[1])

    def of_norm(kept: dict[str, Any]) -> Any:
        return lambda _, __, output: kept.update(z=output)

    handles = [model.decoder.register_forward_pre_hook(lambda _, inputs: grids.append(inputs[4]))]
    for layer, kept in zip(layers, captured, strict=True):
        handles.append(layer.cross_attention.register_forward_hook(of_attention(kept), with_kwargs=True))
        if layer.prior is not None:
            handles.append(layer.prior.register_forward_hook(of_prior(kept)))
            handles.append(layer.prior.norm.register_forward_hook(of_norm(kept)))
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def attention_weights(
    module: nn.Module,
    query: Tensor,
    memory: ForLayer,
    *,
    mask: Tensor | None = None,
    prior: Separable | None = None,
) -> Tensor:
    """A CrossAttention's inputs -> softmax(q k^T / sqrt(d) + log_prior) [B, H, Q, K]."""
    assert isinstance(module, CrossAttention)
    q = module.queries(query, memory)
    scores = q @ memory.key.transpose(-1, -2) / q.shape[-1] ** 0.5
    if prior is not None:
        scores = scores + prior.dense()
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(-1)


def _layer_maps(kept: dict[str, Any], grid: CellGrid, image: int) -> LayerMaps:
    rows = _image_cells(grid.row_is_padding, grid.rows, image)
    columns = _image_cells(grid.column_is_padding, grid.columns, image)

    def maps(flat: Tensor) -> Tensor:
        return flat[image].unflatten(-1, (grid.rows, grid.columns))[..., :rows, :columns]

    attention, prior = maps(kept["attention"]), kept["prior"]
    everywhere = torch.full(attention.shape[:2], prior is not None)
    if prior is None:
        return LayerMaps(attention, None, everywhere)
    own = slice(image, image + 1)
    z, reference = kept["z"][own], Reference(*(part[own] for part in kept["reference"]))
    centres = prior.centres_cells(z, reference)
    has_prior = everywhere if prior.selected is None else prior.selected[..., 0] & everywhere
    return LayerMaps(attention, maps(kept["log_prior"]), has_prior, _formula(prior, z, centres), centres[0])


def _formula(prior: FoveaPrior, z: Tensor, centres_cells: Tensor) -> Callable[[int, int, Tensor, Tensor], Tensor]:
    """z [1, Q, D] and the centres [1, H, Q, 2] of one image -> LayerMaps.log_prior_at."""

    @torch.no_grad()
    def log_prior_at(head: int, query: int, x: Tensor, y: Tensor) -> Tensor:
        parts = prior.log_prior_at(z, centres_cells, x, y)
        one = (None if part is None else part[:, head : head + 1, query : query + 1] for part in parts)
        return Separable(*one).dense().view(len(y), len(x))  # type: ignore[arg-type]

    return log_prior_at


def _image_cells(is_padding: Tensor | None, cells: int, image: int) -> int:
    """The number of cells along one side that belong to the image; padding follows them."""
    return cells if is_padding is None else int((~is_padding[image]).sum())
