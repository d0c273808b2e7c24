"""Position encodings: sine against a loop over cells, and the learned ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fovea_detr.model.position import LearnedPosition, SinePosition


def padding(rows: int, columns: int, own: list[tuple[int, int]]) -> Tensor:
    """[B, rows, columns] bool, own[b]: the rows and columns of image b that are no padding."""
    is_padding = torch.ones(len(own), rows, columns, dtype=torch.bool)
    for mask, (own_rows, own_columns) in zip(is_padding, own, strict=True):
        mask[:own_rows, :own_columns] = False
    return is_padding


def sine_by_hand(place: int, size: int, half: int) -> list[float]:
    """Cell `place` of `size` along one side -> its `half` numbers."""
    angle = (place + 1) / (size + 1e-6) * 2 * math.pi
    waves = []
    for pair in range(half // 2):
        phase = angle / 10000 ** (2 * pair / half)
        waves += [math.sin(phase), math.cos(phase)]
    return waves


@pytest.mark.parametrize("hidden", [4, 12, 16, 256])
def test_sine_by_hand(hidden: int) -> None:
    own = [(4, 6), (3, 5), (1, 1)]
    position = SinePosition(hidden)(padding(4, 6, own)).unflatten(1, (4, 6))
    assert position.shape == (3, 4, 6, hidden)
    assert position.isfinite().all()
    for image, (rows, columns) in enumerate(own):
        for row in range(rows):
            for column in range(columns):
                y, x = (sine_by_hand(*at, hidden // 2) for at in ((row, rows), (column, columns)))
                assert position[image, row, column].tolist() == pytest.approx(y + x, abs=1e-5)


def test_sine_has_no_state() -> None:
    assert not SinePosition(16).state_dict()


def test_learned_is_a_column_and_a_row() -> None:
    torch.manual_seed(0)
    position = LearnedPosition(6)
    out = position(padding(4, 50, [(4, 50), (2, 3)])).unflatten(1, (4, 50))
    assert out.shape == (2, 4, 50, 6)
    for row, column in ((0, 0), (3, 49), (2, 7)):
        expected = torch.cat((position.col_embed.weight[column], position.row_embed.weight[row]))
        assert torch.equal(out[0, row, column], expected)
        assert torch.equal(out[1, row, column], expected)
    out.sum().backward()
    assert position.row_embed.weight.grad is not None
    assert position.row_embed.weight.grad[:4].all()
    assert not position.row_embed.weight.grad[4:].any()


@pytest.mark.parametrize("cells", [(51, 3), (3, 51)])
def test_learned_has_50_cells_per_side(cells: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"model\.position=sine") as caught:
        LearnedPosition(8)(torch.zeros(1, *cells, dtype=torch.bool))
    assert "\n" not in str(caught.value)
    assert f"{cells[0]} x {cells[1]}" in str(caught.value)
