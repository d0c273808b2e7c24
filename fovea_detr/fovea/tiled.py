"""Attention with a separable log-prior, tile by tile: forward and backward hold the scores of one tile at a time.

The sum of the prior's parts, the scores, their softmax and its dropout are those of the formula, in its order; nothing
is approximated. The backward pass computes a tile's weights again instead of storing them, as FlashAttention does (Dao
et al., 2022), so it needs the memory of one tile and, with dropout, one byte per entry for the dropout mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fovea_detr.fovea.separable import Separable

# Entries of a tile: on a CPU it fits into the second-level cache; on a GPU few large kernels are faster than many.
TILE_ENTRIES = {"cpu": 2**19, "cuda": 2**26}
LEVELS = 2**16  # dropout draws 16 bits per entry: a quarter of the time of a float; p is exact within 1e-5


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
        flat = [None if one is None else one.flatten(0, 1) for one in (query, key, value, x, y, xy_x, xy_y)]
        tiles, dropped = _Tiles(flat), round(dropout * LEVELS)
        out = query.new_empty(*tiles.shape[:2], value.shape[-1])
        kept = query.new_empty(tiles.shape, dtype=torch.uint8) if dropped else None
        ctx.factor = LEVELS / (LEVELS - dropped)
        for i, (of_out, of_kept) in enumerate(zip(tiles.cut(out), tiles.cut(kept), strict=True)):
            w, scratch = tiles.weights(i)
            if of_kept is not None:
                mask = _draw(dropped, scratch)
                w.mul_(mask)
                of_kept.copy_(mask)
            of_out.baddbmm_(w, tiles.value[i], beta=0, alpha=ctx.factor)
        ctx.leading = query.shape[:2]
        ctx.save_for_backward(*flat, out, kept)
        return out.unflatten(0, ctx.leading)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(gradients[0].device.type, enabled=False):
            results = _gradients(ctx, gradients[0].flatten(0, 1))
        return *(None if one is None else one.unflatten(0, ctx.leading) for one in results), None


def _gradients(ctx: Any, gradient: Tensor) -> list[Tensor | None]:
    """gradient [B * H, Q, d] of the output -> gradients of query, key, value, x, y, xy_x and xy_y."""
    *flat, out, kept = ctx.saved_tensors
    tiles, results = _Tiles(flat), [None if one is None else torch.empty_like(one) for one in flat]
    of_query, of_key, of_value, *of_prior = tiles.cut_inputs(results)
    # Softmax's derivative subtracts from a row its sum of weight x gradient, which equals gradient x output.
    row_sums = (gradient * out).sum(-1, keepdim=True)
    buffer = torch.empty_like(tiles.scratch)
    for i, (g, sums, of_kept) in enumerate(zip(*map(tiles.cut, (gradient, row_sums, kept)), strict=True)):
        w, scratch = tiles.weights(i)
        grad = _part(buffer, w.shape).baddbmm_(g, tiles.value[i].mT, beta=0, alpha=ctx.factor)
        kept_weights = w
        if of_kept is not None:
            mask = scratch.copy_(of_kept)
            grad.mul_(mask)
            kept_weights = torch.mul(w, mask, out=mask)
        beta = 0 if tiles.begins_a_map(i) else 1  # its first queries write, the others add
        of_value[i].baddbmm_(kept_weights.mT, g, beta=beta, alpha=ctx.factor)
        grad.sub_(sums).mul_(w)  # now the gradient of the scores
        of_query[i].baddbmm_(grad, tiles.key[i], beta=0, alpha=tiles.scale)
        of_key[i].baddbmm_(grad.mT, tiles.query[i], beta=beta, alpha=tiles.scale)
        tiles.prior_gradients(grad, i, [parts[i] for parts in of_prior])
    return results


class _Tiles:
    """The n = B * H attention maps of one call, cut: several whole maps a tile where they fit, else queries of one map.

    flat: query [n, Q, d], key and value [n, K, .], x, y, xy_x and xy_y [n, Q, .]. Each is kept as a list of views, one
    for each tile; the first tile is the largest. scratch, of_weights: memory for the scores of one tile.
    """

    def __init__(self, flat: Sequence[Tensor | None]) -> None:
        query, key, *_, y, _, _ = flat = list(flat)
        assert query is not None and key is not None and y is not None  # noqa: PT018
        self.scale, self.shape = query.shape[-1] ** -0.5, (query.shape[0], query.shape[1], key.shape[1])  # n, Q, K
        self.rows = y.shape[-1]
        self.maps, self.queries = _tile(*self.shape, TILE_ENTRIES.get(query.device.type, TILE_ENTRIES["cuda"]))
        self.query, self.key, self.value, *self.prior = self.cut_inputs(flat)
        self.scratch, self.of_weights = (query.new_empty(self.maps, self.queries, self.shape[2]) for _ in range(2))

    def cut_inputs(self, flat: Sequence[Tensor | None]) -> list[list[Any]]:
        """Each of the inputs, or of their gradients, in tiles; the prior's parts are laid along their columns or rows:
        x and xy_x [m, q, 1, columns], y and xy_y [m, q, rows, 1]."""
        query, key, value, *prior = flat
        laid = (
            part if part is None else part.unsqueeze(end) for part, end in zip(prior, (-2, -1, -2, -1), strict=True)
        )
        return [self.cut(query), self.cut_maps(key), self.cut_maps(value), *map(self.cut, laid)]

    def cut(self, x: Tensor | None) -> list[Any]:
        """[n, Q, ...] -> its tiles."""
        of_maps = self.split(x, self.maps, 0)
        return [tile for one in of_maps for tile in self.split(one, self.queries, 1)]

    def cut_maps(self, x: Tensor | None) -> list[Any]:
        """[n, K, ...] -> of every tile all keys or values of its maps."""
        each = range(-(-self.shape[1] // self.queries))
        return [one for one in self.split(x, self.maps, 0) for _ in each]

    def split(self, x: Tensor | None, size: int, dim: int) -> Sequence[Tensor | None]:
        if x is None:
            return [None] * -(-self.shape[dim] // size)
        return [x] if size >= self.shape[dim] else x.split(size, dim)

    def begins_a_map(self, tile: int) -> bool:
        return tile % -(-self.shape[1] // self.queries) == 0

    def weights(self, tile: int) -> tuple[Tensor, Tensor]:
        """A tile's attention weights, and scratch memory of their shape."""
        x, y, xy_x, xy_y = (part[tile] for part in self.prior)
        shape = (*x.shape[:2], self.shape[2])
        scores, weights = _part(self.scratch, shape), _part(self.of_weights, shape)
        cells = scores.unflatten(-1, (self.rows, -1))
        torch.add(y, x, out=cells)
        if xy_x is not None:
            cells.addcmul_(xy_x, xy_y)
        scores.baddbmm_(self.query[tile], self.key[tile].mT, alpha=self.scale)
        return torch.softmax(scores, -1, out=weights), scores

    def prior_gradients(self, grad: Tensor, tile: int, results: Sequence[Tensor | None]) -> None:
        """grad [m, q, K] of a tile's scores -> the gradients of the prior's parts, written into `results`."""
        cells = grad.unflatten(-1, (self.rows, -1))
        of_x, of_y, of_xy_x, of_xy_y = results
        assert of_x is not None and of_y is not None  # noqa: PT018
        torch.sum(cells, -2, keepdim=True, out=of_x)
        torch.sum(cells, -1, keepdim=True, out=of_y)
        if of_xy_x is not None and of_xy_y is not None:
            xy_x, xy_y = (part[tile] for part in self.prior[2:])
            of_xy_x.copy_(xy_y.mT @ cells)
            of_xy_y.copy_(cells @ xy_x.mT)


def _tile(num_maps: int, num_queries: int, cells: int, entries: int) -> tuple[int, int]:
    """-> maps and queries of a tile."""
    maps = min(num_maps, max(1, entries // (num_queries * cells)))
    return maps, num_queries if maps > 1 else min(num_queries, max(1, entries // cells))


def _part(buffer: Tensor, shape: Sequence[int]) -> Tensor:
    """The first entries of a buffer along its first dimensions."""
    return buffer if buffer.shape == tuple(shape) else buffer[: shape[0], : shape[1]]


def _draw(dropped: int, out: Tensor) -> Tensor:
    """Write into `out` 0 (drop) with probability dropped / LEVELS, else 1 (keep)."""
    bits = torch.empty((out.numel() + 3) // 4, dtype=torch.int64, device=out.device).random_(-(2**63), None)
    levels = bits.view(torch.int16)
    levels = (levels if levels.numel() == out.numel() else levels[: out.numel()]).view(out.shape)
    return torch.ge(levels, dropped - LEVELS // 2, out=out)
