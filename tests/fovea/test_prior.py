"""The separable prior against the materialised formula: forward, gradients, both precisions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fovea_detr.fovea.prior import Reference
from tests.fovea.priors import (
    MIXTURES,
    PRECISIONS,
    RELATIVE,
    SHAPES,
    SIZES,
    TYPES,
    Setting,
    assert_near,
    by_the_prior,
    gradients,
    reference_of,
)


def assert_equals_reference(setting: Setting) -> None:
    """The log-prior and the reference point elementwise, then the gradient of both by every input and parameter."""
    prior, inputs = setting.build(), setting.inputs()
    leaves = [*inputs.learned(), *prior.parameters()]
    log_prior, point = by_the_prior(prior, inputs, setting.grid)
    for ours, expected in zip((log_prior.dense(), point), setting.by_reference(prior, inputs), strict=True):
        assert_near(ours, expected, RELATIVE[setting.dtype])
        if expected.grad_fn is not None:
            for a, b in zip(gradients(ours, leaves), gradients(expected, leaves), strict=True):
                assert_near(a, b, RELATIVE[setting.dtype])


@PRECISIONS
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize(("scale_type", "kernel"), SHAPES)
def test_every_shape_and_mixture(scale_type: str, kernel: str, mixture: str, dtype: torch.dtype) -> None:
    assert_equals_reference(Setting(scale_type, mixture, kernel, dtype=dtype))


@PRECISIONS
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("scale_type", "mixture"), [("type3", "none"), ("type4", "head_query"), ("type5", "none")])
def test_every_size(sizes: Setting, scale_type: str, mixture: str, dtype: torch.dtype) -> None:
    assert_equals_reference(sizes.but(scale_type=scale_type, mixture=mixture, dtype=dtype))


@pytest.mark.parametrize(("scale_type", "kernel"), SHAPES)
def test_shape_and_never_above_zero(scale_type: str, kernel: str) -> None:
    setting = Setting(scale_type, kernel=kernel, dtype=torch.float32)
    log_prior = setting.build()(*setting.inputs(), setting.grid)[0].dense()
    assert log_prior.shape == (2, setting.heads, setting.num_queries, setting.grid.rows * setting.grid.columns)
    assert (log_prior <= 0).all()


def test_the_centre_is_in_cells_of_the_images_own_size() -> None:
    """Without offsets and with a reference of 0, the centre is the middle of the image without its padding."""
    setting = Setting("type1", first=False, dtype=torch.float32)
    prior, inputs = setting.build(), setting.inputs()
    nn.init.zeros_(prior.offset.weight)
    nn.init.zeros_(prior.offset.bias)
    middle = torch.zeros(2, setting.num_queries, 2)
    point = Reference.of(middle, torch.tensor([[128, 192], [64, 96]]), stride=32)
    centres = prior.centres_cells(inputs.content, point)
    assert torch.equal(centres[0], torch.tensor([3.0, 2.0]).expand_as(centres[0]))
    assert torch.equal(centres[1], torch.tensor([1.5, 1.0]).expand_as(centres[1]))


@pytest.mark.parametrize(("cell_centre", "place"), [(False, (2.0, 1.0)), (True, (2.5, 1.5))])
def test_a_cell_lies_at_its_index_or_at_its_centre(cell_centre: bool, place: tuple[float, float]) -> None:
    setting = Setting("type1", cell_centre=cell_centre, dtype=torch.float32)
    log_prior = setting.build().log_prior(torch.zeros(1, 1, 24), torch.tensor(place).view(1, 1, 1, 2), setting.grid)
    grid = log_prior.dense().view(setting.grid.rows, setting.grid.columns)
    assert (grid == 0).nonzero().tolist() == [[1, 2]]
    assert grid[1, 3] == grid[0, 2] == -1 / 8


def test_later_layers_get_the_reference() -> None:
    setting = Setting(first=False, dtype=torch.float32)
    prior, inputs = setting.build(), setting.inputs()
    given = reference_of(inputs, setting.grid)
    _, handed_on = prior(inputs.content, inputs.query_embed, given, inputs.sizes_hw, setting.grid)
    assert handed_on is given
    with pytest.raises(AssertionError, match="first layer"):
        prior(inputs.content, inputs.query_embed, None, inputs.sizes_hw, setting.grid)


@pytest.mark.parametrize("scale_type", TYPES)
def test_float32_under_autocast(scale_type: str) -> None:
    setting = Setting(scale_type, dtype=torch.float32)
    prior, inputs = setting.build(), setting.inputs()
    expected, point = prior(*inputs, setting.grid)
    with torch.autocast("cpu", torch.bfloat16):
        log_prior, same_point = prior(*inputs, setting.grid)
    assert log_prior.x.dtype == same_point.logits.dtype == torch.float32
    assert torch.equal(log_prior.dense(), expected.dense())
    assert torch.equal(same_point.logits, point.logits)


@pytest.mark.parametrize(("scale_type", "kernel"), SHAPES)
def test_padding_is_hidden_and_nothing_else_changes(scale_type: str, kernel: str) -> None:
    """-inf on the padding of rows and columns; elsewhere nothing changes, nor, through a softmax, in the gradients."""
    setting = Setting(scale_type, kernel=kernel, dtype=torch.float32)
    prior, inputs, grid = setting.build(), setting.inputs(), setting.grid
    rows, columns = (torch.zeros(2, n, dtype=torch.bool) for n in (grid.rows, grid.columns))
    rows[1, -1], columns[1, -2:] = True, True
    padded = replace(grid, row_is_padding=rows, column_is_padding=columns)
    is_padding = padded.is_padding()
    assert is_padding is not None
    hidden = is_padding.flatten(1)[:, None, None]
    ours, plain = (prior(*inputs, one)[0].dense() for one in (padded, grid))
    expected = plain.masked_fill(hidden, float("-inf"))
    assert torch.equal(ours.isinf(), hidden.expand_as(ours))
    assert_near(ours.masked_fill(hidden, 0.0), expected.masked_fill(hidden, 0.0), 1e-6)
    leaves = [inputs.content, inputs.query_embed, *prior.parameters()]
    for a, b in zip(gradients(ours.softmax(-1), leaves), gradients(expected.softmax(-1), leaves), strict=True):
        assert_near(a, b, 1e-5)


def test_bfloat16_content_is_computed_in_float32() -> None:
    setting = Setting(dtype=torch.float32)
    prior, inputs = setting.build(), setting.inputs()
    rounded = inputs.content.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = prior(rounded, inputs.query_embed, None, inputs.sizes_hw, setting.grid)
    expected, _ = prior(rounded.float(), inputs.query_embed, None, inputs.sizes_hw, setting.grid)
    assert torch.equal(ours.dense(), expected.dense())
