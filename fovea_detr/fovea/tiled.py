"""Attention with a separable log-prior, tile by tile: forward and backward hold the scores of one tile at a time.

The sum of the prior's parts, the scores, their softmax and its dropout are those of the formula, in its order; nothing
is approximated. The backward pass computes a tile's weights again instead of storing them, as FlashAttention does (Dao
et al., 2022), so it needs the memory of one tile and, with dropout, one byte per entry for the dropout mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fovea_detr.fovea.separable import Separable

# Entries of a tile: on a CPU it fits into the second-level cache; on a GPU few large kernels are faster than many.
TILE_ENTRIES = {"cpu": 2**19, "cuda": 2**26}
LEVELS = 2**16  # dropout draws 16 bits per entry: a quarter of the time of a float; p is exact within 1e-5

Tile = tuple[slice, slice]  # attention maps (of B * H), and their queries


def tiled_attention(query: Tensor, key: Tensor, value: Tensor, prior: Separable, dropout: float) -> Tensor:
    """softmax(query key^T / sqrt(d) + prior) value, with dropout on the weights (a fraction in 0..1, 1 excluded).

    query [B, H, Q, d], key [B, H, rows * columns, d], value [B, H, rows * columns, v] -> [B, H, Q, v] in the query's
    type; computed in the prior's. Dropout draws from the global generator of the query's device. Differentiable once.
    """
    with torch.autocast(query.device.type, enabled=False):
        cast = (x.to(prior.x.dtype) for x in (query, key, value))
        return _TiledAttention.apply(*cast, *prior, dropout).to(query.dtype)  # type: ignore[union-attr]


class _TiledAttention(Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        x: Tensor,
        y: Tensor,
        xy_x: Tensor | None,
        xy_y: Tensor | None,
        dropout: float,
    ) -> Tensor:
        maps = _Maps(query, key, value, Separable(x, y, xy_x, xy_y))
        dropped = round(dropout * LEVELS)
        out, tiles = maps.query.new_empty(*maps.shape[:2], maps.value.shape[-1]), _tiles(maps)
        scores, weights = maps.buffer(tiles), maps.buffer(tiles)
        kept = torch.empty(maps.shape, dtype=torch.uint8, device=query.device) if dropped else None
        for tile in tiles:
            w = maps.weights(tile, scores, weights)
            if kept is not None:
                mask = _draw(dropped, _part(scores, tile))  # overwrites the scores, not needed any more
                w.mul_(mask)
                kept[tile] = mask
            torch.bmm(w, maps.value[tile[0]], out=out[tile])
        ctx.factor = LEVELS / (LEVELS - dropped)
        out.mul_(ctx.factor)
        ctx.leading = query.shape[:2]
        ctx.save_for_backward(query, key, value, x, y, xy_x, xy_y, out, kept)
        return out.unflatten(0, ctx.leading)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(gradients[0].device.type, enabled=False):
            results = _gradients(ctx, gradients[0].flatten(0, 1).contiguous())
        return *(None if one is None else one.unflatten(0, ctx.leading) for one in results), None


def _gradients(ctx: Any, gradient: Tensor) -> list[Tensor | None]:
    """gradient [B * H, Q, d] of the output -> gradients of query, key, value, x, y, xy_x and xy_y."""
    query, key, value, *prior, out, kept = ctx.saved_tensors
    maps = _Maps(query, key, value, Separable(*prior))
    results = [None if one is None else torch.zeros_like(one) for one in maps.tensors()]
    tiles = _tiles(maps)
    scores, weights, grad_weights = (maps.buffer(tiles) for _ in range(3))
    # Softmax's derivative subtracts from a row its sum of weight x gradient, which equals gradient x output.
    row_sums = (gradient * out).sum(-1, keepdim=True)
    gradient = gradient * ctx.factor
    for tile in tiles:
        maps_slice = tile[0]
        w, g = maps.weights(tile, scores, weights), gradient[tile]
        grad = torch.bmm(g, maps.value[maps_slice].transpose(1, 2), out=_part(grad_weights, tile))
        kept_weights = w
        if kept is not None:
            mask = _part(scores, tile).copy_(kept[tile])
            grad.mul_(mask)
            kept_weights = torch.mul(w, mask, out=mask)
        results[2][maps_slice].baddbmm_(kept_weights.transpose(1, 2), g)  # type: ignore[index]
        grad.sub_(row_sums[tile]).mul_(w)  # now the gradient of the scores
        torch.bmm(grad, maps.key[maps_slice], out=results[0][tile])  # type: ignore[index]
        results[1][maps_slice].baddbmm_(grad.transpose(1, 2), maps.query[tile])  # type: ignore[index]
        maps.prior_gradients(grad, tile, results[3:])
    results[0].mul_(maps.scale)  # type: ignore[union-attr]
    return results


class _Maps:
    """The B * H attention maps of one call, flattened: query [n, Q, d] is scaled, key and value are [n, K, d]."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, prior: Separable) -> None:
        self.scale = query.shape[-1] ** -0.5
        self.query = (query * self.scale).flatten(0, 1)
        self.key, self.value = (one.flatten(0, 1).contiguous() for one in (key, value))
        self.prior = Separable(*(None if part is None else part.flatten(0, 1) for part in prior))  # type: ignore[arg-type]
        self.shape = (self.query.shape[0], self.query.shape[1], self.key.shape[1])  # n, Q, K
        self.grid = (self.prior.y.shape[-1], self.prior.x.shape[-1])

    def tensors(self) -> tuple[Tensor | None, ...]:
        return (self.query, self.key, self.value, *self.prior)

    def buffer(self, tiles: list[Tile]) -> Tensor:
        maps, queries = tiles[0]  # the largest
        return self.query.new_empty(maps.stop, queries.stop, self.shape[-1])

    def weights(self, tile: Tile, scores: Tensor, weights: Tensor) -> Tensor:
        """A tile's attention weights, written into `weights`; `scores` is scratch memory."""
        x, y, xy_x, xy_y = (None if part is None else part[tile] for part in self.prior)
        scores, weights = _part(scores, tile), _part(weights, tile)
        cells = scores.unflatten(-1, self.grid)
        torch.add(y[..., :, None], x[..., None, :], out=cells)  # type: ignore[index]
        if xy_x is not None and xy_y is not None:
            cells.addcmul_(xy_x[..., None, :], xy_y[..., :, None])
        scores.baddbmm_(self.query[tile], self.key[tile[0]].transpose(1, 2))
        return torch.softmax(scores, -1, out=weights)

    def prior_gradients(self, grad: Tensor, tile: Tile, results: list[Tensor | None]) -> None:
        """grad [n, Q, K] of a tile's scores -> the gradients of the prior's parts, written into `results`."""
        cells = grad.unflatten(-1, self.grid)
        of_x, of_y, of_xy_x, of_xy_y = (None if one is None else one[tile] for one in results)
        assert of_x is not None
        assert of_y is not None
        of_x.copy_(cells.sum(-2))
        of_y.copy_(cells.sum(-1))
        if of_xy_x is not None and of_xy_y is not None and self.prior.xy_x is not None and self.prior.xy_y is not None:
            of_xy_x.copy_((self.prior.xy_y[tile][..., None, :] @ cells)[..., 0, :])
            of_xy_y.copy_((cells @ self.prior.xy_x[tile][..., None])[..., 0])


def _tiles(maps: _Maps) -> list[Tile]:
    """Several whole maps per tile where they fit, else some queries of one map; the first tile is the largest."""
    return list(_cut(*maps.shape, TILE_ENTRIES.get(maps.query.device.type, TILE_ENTRIES["cuda"])))


def _cut(num_maps: int, num_queries: int, cells: int, entries: int) -> Iterator[Tile]:
    maps = max(1, entries // (num_queries * cells))
    queries = num_queries if maps > 1 else min(num_queries, max(1, entries // cells))
    for first in range(0, num_maps, maps):
        for start in range(0, num_queries, queries):
            yield slice(first, min(first + maps, num_maps)), slice(start, min(start + queries, num_queries))


def _part(buffer: Tensor, tile: Tile) -> Tensor:
    """The first entries of a buffer along both dimensions, as many as the tile has."""
    return buffer[: tile[0].stop - tile[0].start, : tile[1].stop - tile[1].start]


def _draw(dropped: int, out: Tensor) -> Tensor:
    """Write into `out` 0 (drop) with probability dropped / LEVELS, else 1 (keep)."""
    bits = torch.empty((out.numel() + 3) // 4, dtype=torch.int64, device=out.device).random_(-(2**63), None)
    levels = bits.view(torch.int16)[: out.numel()].view(out.shape)
    return torch.ge(levels, dropped - LEVELS // 2, out=out)
