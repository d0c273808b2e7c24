"""Attention with a log-prior, by the path that is fastest on the device. All paths are exact.

    tiled     scores tile by tile, computed again in the backward pass (tiled.py)
    mask      the log-prior as one tensor, added by `scaled_dot_product_attention`
    one_hot   no mask, so that flash kernels apply: queries carry their x and y values, keys the one-hot of their column
              and row, and the dot product selects the sum; not for types 4 and 5, whose product term it cannot express

On a CPU the rule is fixed, so that runs repeat bit for bit: without dropout, `mask` in inference and where all scores
fit into one tile, else `tiled`; `make bench` measures both. On a GPU each path is timed once per process, on the first
input of its kind, which a training run makes its largest one, before its first step.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from fovea_detr.fovea.separable import Separable
from fovea_detr.fovea.tiled import TILE_ENTRIES, tiled_attention
from fovea_detr.machine import device

AttentionPath = Callable[[Tensor, Tensor, Tensor, Separable, float], Tensor]

HIDDEN = -1e30  # replaces -inf in a dot product, where -inf x 0 would be NaN; its exponential is 0 as well
ALIGNMENT = 8  # of a head's width, for flash kernels
TIMED_PASSES = 5

_chosen: dict[tuple[object, ...], str] = {}


def attend(query: Tensor, key: Tensor, value: Tensor, prior: Separable, dropout: float) -> Tensor:
    """softmax(query key^T / sqrt(d) + prior) value, with dropout on the weights.

    query [B, H, Q, d], key and value [B, H, rows * columns, d], the prior in float32 -> [B, H, Q, d].
    """
    return PATHS[choose(query, key, value, prior, dropout)](query, key, value, prior, dropout)


def choose(query: Tensor, key: Tensor, value: Tensor, prior: Separable, dropout: float) -> str:
    """The name of the path for inputs of this kind: device, type, product term, direction, dropout."""
    backward = torch.is_grad_enabled() and (query.requires_grad or prior.x.requires_grad)
    if query.device.type != "cuda":
        entries = prior.x[..., 0].numel() * key.shape[-2]
        return "mask" if dropout == 0 and (not backward or entries <= TILE_ENTRIES["cpu"]) else "tiled"
    kind = (query.device, query.dtype, torch.is_autocast_enabled("cuda"), prior.xy_x is None, backward, dropout > 0)
    if kind not in _chosen:
        times = {
            name: seconds(PATHS[name], query, key, value, prior, dropout, backward=backward) for name in offered(prior)
        }
        _chosen[kind] = min(times, key=times.__getitem__)
    return _chosen[kind]


def choices() -> list[str]:
    """The paths chosen by measurement in this process, one line each, for the log."""
    return [
        f"{name} for {'training' if backward else 'inference'} ({'no product term' if plain else 'product term'})"
        for (_, _, _, plain, backward, _), name in _chosen.items()
    ]


def offered(prior: Separable) -> list[str]:
    """The paths that are exact for this prior."""
    return [name for name in PATHS if name != "one_hot" or prior.xy_x is None]


def seconds(
    path: AttentionPath, query: Tensor, key: Tensor, value: Tensor, prior: Separable, dropout: float, *, backward: bool
) -> float:
    """The median time of a pass on copies of these inputs; infinite if it does not fit into memory.

    Random generators and the inputs' gradients are restored.
    """

    def copy(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.detach().clone().requires_grad_(backward)

    q, k, v, *parts = map(copy, (query, key, value, *prior))
    assert q is not None and k is not None and v is not None  # noqa: PT018
    parts = Separable(*parts)  # type: ignore[arg-type]

    def work() -> None:
        out = path(q, k, v, parts, dropout)
        if out.requires_grad:
            out.sum().backward()

    devices = [query.device] if query.is_cuda else []
    with torch.random.fork_rng(devices), torch.set_grad_enabled(backward):
        try:
            return median([device.seconds(work, query.device) for _ in range(TIMED_PASSES + 1)][1:])
        except torch.OutOfMemoryError:
            return float("inf")


def masked_attention(query: Tensor, key: Tensor, value: Tensor, prior: Separable, dropout: float) -> Tensor:
    mask = prior.dense().to(query.dtype)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def one_hot_attention(query: Tensor, key: Tensor, value: Tensor, prior: Separable, dropout: float) -> Tensor:
    """Each row's largest value is subtracted from x and y first: softmax is invariant to it, and the values that
    bfloat16 rounds are then small wherever the weight is large."""
    assert prior.xy_x is None, "a product of column and row is not a sum of their one-hots"
    width, scale = query.shape[-1], query.shape[-1] ** -0.5
    levels = [(part - part.detach().amax(-1, keepdim=True)).clamp(min=HIDDEN) / scale for part in (prior.x, prior.y)]
    query = torch.cat((query, *(level.to(query.dtype) for level in levels)), dim=-1)
    one_hots = _one_hots(prior.y.shape[-1], prior.x.shape[-1], key)
    key = torch.cat((key, one_hots.expand(*key.shape[:2], -1, -1)), dim=-1)
    query, key, value = (_pad_width(x, query.shape[-1]) for x in (query, key, value))
    out = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scale)
    return out[..., :width]


def _one_hots(rows: int, columns: int, like: Tensor) -> Tensor:
    """[rows * columns, columns + rows]: the one-hots of every cell's column and row."""
    row, column = (torch.eye(n, dtype=like.dtype, device=like.device) for n in (rows, columns))
    return torch.cat((column.expand(rows, -1, -1), row[:, None].expand(-1, columns, -1)), dim=-1).flatten(0, 1)


def _pad_width(x: Tensor, width: int) -> Tensor:
    """Zeros appended to the last dimension, up to the first multiple of ALIGNMENT that holds `width`."""
    return functional.pad(x, (0, -(-width // ALIGNMENT) * ALIGNMENT - x.shape[-1]))


PATHS: dict[str, AttentionPath] = {"tiled": tiled_attention, "mask": masked_attention, "one_hot": one_hot_attention}
