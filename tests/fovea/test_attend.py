"""Every path of attention with a prior against the materialised formula: forward, gradients, dropout, bfloat16."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from fovea_detr.fovea import attend, tiled
from fovea_detr.fovea.prior import CellGrid, FoveaPrior
from fovea_detr.fovea.separable import Separable
from tests.fovea.priors import (
    MIXTURES,
    PRECISIONS,
    RELATIVE,
    SHAPES,
    SIZES,
    TYPES,
    Inputs,
    Setting,
    assert_near,
    by_the_prior,
    gradients,
)

PATHS = list(attend.PATHS)
TILES = {"one_tile": 2**19, "two_maps_a_tile": 2 * 5 * 24, "some_queries_a_tile": 3 * 24, "one_query_a_tile": 1}


@dataclass
class Case:
    """Queries, cells and a prior; the second image is padded: [2, H, Q, d] and [2, H, K, d] twice."""

    setting: Setting
    prior: FoveaPrior
    inputs: Inputs
    grid: CellGrid
    query: Tensor
    key: Tensor
    value: Tensor

    def log_prior(self) -> Separable:
        return by_the_prior(self.prior, self.inputs, self.grid)[0]

    def leaves(self) -> list[Tensor]:
        return [self.query, self.key, self.value, *self.inputs.learned(), *self.prior.parameters()]

    def by_formula(self, keep: Tensor | None = None) -> Tensor:
        """keep [2, H, Q, K]: what dropout multiplies the weights by."""
        scores = self.query @ self.key.transpose(-1, -2) / math.sqrt(self.query.shape[-1])
        scores = scores + self.setting.by_reference(self.prior, self.inputs)[0]
        is_padding = self.grid.is_padding()
        assert is_padding is not None
        weights = scores.masked_fill(is_padding.flatten(1)[:, None, None], float("-inf")).softmax(-1)
        return (weights if keep is None else weights * keep) @ self.value


def make_case(setting: Setting, width: int = 6) -> Case:
    draw = torch.Generator().manual_seed(7)
    sides = setting.grid.rows, setting.grid.columns
    shapes = [(2, setting.heads, n, width) for n in (setting.num_queries, math.prod(sides), math.prod(sides))]
    parts = [torch.randn(shape, generator=draw, dtype=torch.float64).to(setting.dtype) for shape in shapes]
    hidden = [torch.arange(side).expand(2, -1) >= torch.tensor([[side], [(side + 1) // 2]]) for side in sides]
    grid = replace(setting.grid, row_is_padding=hidden[0], column_is_padding=hidden[1])
    query, key, value = (part.requires_grad_() for part in parts)
    return Case(setting, setting.build(), setting.inputs(), grid, query, key, value)


def assert_exact(path: str, setting: Setting) -> None:
    case = make_case(setting)
    log_prior = case.log_prior()
    assert path in attend.offered(log_prior)
    ours = attend.PATHS[path](case.query, case.key, case.value, log_prior, 0.0)
    theirs = case.by_formula()
    assert_near(ours, theirs, RELATIVE[setting.dtype])
    for a, b in zip(gradients(ours, case.leaves()), gradients(theirs, case.leaves()), strict=True):
        assert_near(a, b, RELATIVE[setting.dtype])


PRODUCT_TERM = [name for name in TYPES if make_case(Setting(name)).log_prior().xy_x is not None]
OFFERED = [(path, *shape) for path in PATHS for shape in SHAPES if path != "one_hot" or shape[0] not in PRODUCT_TERM]
OF_EVERY_SIZE = [kind for kind in OFFERED if kind[1] in ("type3", "type4", "type5")]


@PRECISIONS
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize(("path", "scale_type", "kernel"), OFFERED)
def test_every_shape_and_mixture(path: str, scale_type: str, kernel: str, mixture: str, dtype: torch.dtype) -> None:
    assert_exact(path, Setting(scale_type, mixture, kernel, dtype=dtype))


@PRECISIONS
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("path", "scale_type", "kernel"), OF_EVERY_SIZE)
def test_every_size(path: str, scale_type: str, kernel: str, sizes: Setting, dtype: torch.dtype) -> None:
    assert_exact(path, sizes.but(scale_type=scale_type, kernel=kernel, mixture="head_query", dtype=dtype))


@pytest.mark.parametrize("entries", TILES.values(), ids=TILES)
@pytest.mark.parametrize("scale_type", ["type3", "type4", "type5"])
def test_every_size_of_tile(entries: int, scale_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiled.TILE_ENTRIES, "cpu", entries)
    assert_exact("tiled", Setting(scale_type, "head_query"))


@pytest.mark.parametrize(
    ("maps", "queries", "cells", "entries"), list(itertools.product((1, 7), (1, 5), (1, 24), (1, 50, 300)))
)
def test_tiles_cover_every_query_of_every_map_once(
    maps: int, queries: int, cells: int, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiled.TILE_ENTRIES, "cpu", entries)
    shapes = [(maps, queries, 2), (maps, cells, 2), (maps, cells, 2), (maps, queries, cells), (maps, queries, 1)]
    tiles = tiled._Tiles([*map(torch.zeros, shapes), None, None])
    count, of_maps = torch.zeros(maps, queries), torch.zeros(maps, cells)
    sizes = []
    for i, (tile, map_of_tile) in enumerate(zip(tiles.cut(count), tiles.cut_maps(of_maps), strict=True)):
        tile += 1
        map_of_tile[:] = 1 if tiles.begins_a_map(i) else map_of_tile + 1
        assert len(tile) == len(map_of_tile)
        sizes.append(tile.shape)
    assert (count == 1).all()
    assert (of_maps == len(sizes) / len(tiles.split(count, tiles.maps, 0))).all()
    assert all(a <= b for size in sizes for a, b in zip(size, sizes[0], strict=True))
    assert math.prod(sizes[0]) * cells <= max(entries, cells)


@pytest.mark.parametrize("path", PATHS)
def test_far_away_centres_are_exact_too(path: str) -> None:
    """A centre may lie far outside its image: distances are large, and only their differences matter."""
    case = make_case(Setting("type3", dtype=torch.float32))
    nn.init.constant_(case.prior.offset.bias, 60.0)
    ours = attend.PATHS[path](case.query, case.key, case.value, case.log_prior(), 0.0)
    double = make_case(Setting("type3", dtype=torch.float64))
    nn.init.constant_(double.prior.offset.bias, 60.0)
    # The prior's own rounding, about 1e-7 of a log-prior of 1000, is all that float32 adds.
    assert_near(ours.double(), double.by_formula(), 1e-3)


@pytest.mark.parametrize("scale_type", ["type3", "type4", "type5"])
@pytest.mark.parametrize("entries", TILES.values(), ids=TILES)
def test_dropout_is_the_formulas_with_what_was_dropped(
    entries: int, scale_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the identity as values the output is the weights, and so the dropout mask; the same seed repeats it."""
    monkeypatch.setitem(tiled.TILE_ENTRIES, "cpu", entries)
    case = make_case(Setting(scale_type))
    cells = case.key.shape[-2]

    def dropped(value: Tensor) -> Tensor:
        torch.manual_seed(3)
        return tiled.tiled_attention(case.query, case.key, value, case.log_prior(), 0.3)

    whole = replace(case, value=torch.eye(cells, dtype=torch.float64).expand(2, case.setting.heads, -1, -1))
    weights = whole.by_formula()
    keep = torch.where(weights > 0, dropped(whole.value) / weights, 0.0)
    factor = 1 / (1 - round(0.3 * tiled.LEVELS) / tiled.LEVELS)
    assert ((keep == 0) | ((keep - factor).abs() < 1e-9)).all()
    ours, theirs = dropped(case.value), case.by_formula(keep.detach())
    assert_near(ours, theirs, 1e-12)
    for a, b in zip(gradients(ours, case.leaves()), gradients(theirs, case.leaves()), strict=True):
        assert_near(a, b, 1e-12)


@pytest.mark.parametrize("fraction", [0.0, 1e-6, 0.1, 0.5, 0.9])
def test_dropout_drops_the_fraction_asked_for(fraction: float) -> None:
    torch.manual_seed(0)
    kept = tiled._draw(round(fraction * tiled.LEVELS), torch.empty(1000, 1001)).mean().item()
    assert kept == pytest.approx(1 - fraction, abs=5 * math.sqrt(fraction * (1 - fraction) / 1e6) + 1e-5)


def test_dropout_draws_anew_and_repeats_with_the_seed() -> None:
    case = make_case(Setting(dtype=torch.float32))

    def once() -> Tensor:
        return attend.attend(case.query, case.key, case.value, case.log_prior(), 0.5)

    torch.manual_seed(0)
    first, second = once(), once()
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(once(), first)


@pytest.mark.parametrize(("path", "scale_type", "kernel"), OFFERED)
def test_bfloat16_is_exact_to_its_rounding(path: str, scale_type: str, kernel: str) -> None:
    """No path is further from the exact result than rounding query, key, value and result to bfloat16 explains."""
    setting = Setting(scale_type, kernel=kernel, dtype=torch.float32, grid=CellGrid(9, 13, 32), num_queries=40)
    exact, rounded = make_case(setting, width=8), make_case(setting, width=8)
    rounded.query, rounded.key, rounded.value = (
        x.detach().bfloat16().requires_grad_() for x in (exact.query, exact.key, exact.value)
    )
    with torch.autocast("cpu", torch.bfloat16):
        ours = attend.PATHS[path](rounded.query, rounded.key, rounded.value, rounded.log_prior(), 0.0)
    assert ours.dtype == torch.bfloat16
    theirs = exact.by_formula()
    noise = 2e-2  # a handful of roundings of 2^-9 each, of scores up to 4 and values up to 3
    assert_near(ours.float(), theirs, noise)
    mine = gradients(ours, [rounded.query, rounded.key, rounded.value, *rounded.prior.parameters()])
    other = gradients(theirs, [exact.query, exact.key, exact.value, *exact.prior.parameters()])
    for a, b in zip(mine, other, strict=True):
        assert_near(a.float(), b, 2 * noise)


def test_a_product_of_column_and_row_is_not_offered_as_one_hots() -> None:
    assert {"type4", "type5"} <= set(PRODUCT_TERM)
    for name in PRODUCT_TERM:
        assert "one_hot" not in attend.offered(make_case(Setting(name)).log_prior())


@pytest.mark.parametrize(
    ("spare", "dropout", "backward", "expected"),
    [
        (0, 0.0, True, "mask"),
        (-1, 0.0, True, "tiled"),
        (-1, 0.0, False, "mask"),
        (0, 0.1, True, "tiled"),
        (0, 0.1, False, "tiled"),
    ],
)
def test_a_cpu_always_chooses_the_same_path(
    spare: int, dropout: float, backward: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small maps and inference use the mask, large maps and dropout tiles; nothing is measured."""
    case, entries = make_case(Setting(dtype=torch.float32)), 2 * 4 * 5 * 24
    monkeypatch.setitem(tiled.TILE_ENTRIES, "cpu", entries + spare)
    with torch.set_grad_enabled(backward):
        assert attend.choose(case.query, case.key, case.value, case.log_prior(), dropout) == expected
    assert attend.choices() == []


@pytest.mark.parametrize("backward", [True, False])
def test_timing_a_path_restores_generators_and_leaves_gradients(backward: bool) -> None:
    case = make_case(Setting(dtype=torch.float32))
    before = torch.get_rng_state()
    for path in PATHS:
        taken = attend.seconds(
            attend.PATHS[path], case.query, case.key, case.value, case.log_prior(), 0.5, backward=backward
        )
        assert 0 < taken < 60
    assert torch.equal(torch.get_rng_state(), before)
    assert all(leaf.grad is None for leaf in case.leaves())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: a path is chosen by measurement on GPUs only")
@pytest.mark.parametrize("scale_type", TYPES)
def test_a_gpu_chooses_once(scale_type: str) -> None:
    case = make_case(Setting(scale_type, dtype=torch.float32))
    query, key, value = (x.detach().cuda().requires_grad_() for x in (case.query, case.key, case.value))
    log_prior = Separable(*(None if part is None else part.detach().cuda() for part in case.log_prior()))  # type: ignore[arg-type]
    first = attend.choose(query, key, value, log_prior, 0.1)
    assert first in attend.offered(log_prior)
    assert attend.choose(query, key, value, log_prior, 0.1) == first
    assert_near(attend.attend(query, key, value, log_prior, 0.0).cpu(), case.by_formula(), 1e-5)
