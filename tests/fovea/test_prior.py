"""The separable prior against the materialised formula: forward, gradients, both precisions, and through attention."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fovea_detr.fovea.prior import CellGrid, FoveaPrior
from fovea_detr.model.attention import Attention
from tests import reference
from tests.fovea.priors import MIXTURES, TYPES, Inputs, Setting, assert_near, gradients, randomise

RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-5}
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
SIZES = {
    "later_layer": Setting(first=False),
    "one_query": Setting(num_queries=1),
    "even_queries": Setting(num_queries=6),
    "one_head": Setting(heads=1),
    "odd_heads": Setting(heads=3),
    "one_cell": Setting(grid=CellGrid(1, 1, 32)),
    "one_row": Setting(grid=CellGrid(1, 7, 32)),
    "one_column": Setting(grid=CellGrid(5, 1, 16)),
    "stride_16": Setting(grid=CellGrid(7, 5, 16)),
    "smooth_4": Setting(smooth=4.0),
    "smooth_16": Setting(smooth=16.0),
    "smooth_6.5": Setting(smooth=6.5),
}


def by_the_prior(prior: FoveaPrior, inputs: Inputs, setting: Setting) -> tuple[Tensor, Tensor]:
    """-> log-prior [B, H, Q, K] and reference [B, Q, 2]: `forward`, or in float64, which it rounds away, its steps."""
    if setting.dtype == torch.float32:
        return prior(*inputs, setting.grid)
    z = prior.norm(inputs.content + inputs.query_embed)
    point = inputs.reference if prior.reference is None else prior.reference(z)
    assert point is not None
    centres = prior.centres_cells(z, point, inputs.sizes_hw, setting.grid.stride)
    return prior.log_prior(z, centres, setting.grid), point


def assert_equals_reference(setting: Setting) -> None:
    """The log-prior and the reference point elementwise, then the gradient of both by every input and parameter."""
    prior, inputs = setting.build(), setting.inputs()
    leaves = [*inputs.learned(), *prior.parameters()]
    ours, theirs = by_the_prior(prior, inputs, setting), setting.by_reference(prior, inputs)
    for mine, expected in zip(ours, theirs, strict=True):
        assert_near(mine, expected, RELATIVE[setting.dtype])
        if expected.grad_fn is not None:
            for a, b in zip(gradients(mine, leaves), gradients(expected, leaves), strict=True):
                assert_near(a, b, RELATIVE[setting.dtype])


@PRECISIONS
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("scale_type", TYPES)
def test_every_type_and_mixture(scale_type: str, mixture: str, dtype: torch.dtype) -> None:
    assert_equals_reference(Setting(scale_type, mixture, dtype=dtype))


@PRECISIONS
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("scale_type", "mixture"), [("type3", "none"), ("type4", "head_query")])
def test_every_size(sizes: Setting, scale_type: str, mixture: str, dtype: torch.dtype) -> None:
    assert_equals_reference(sizes.but(scale_type=scale_type, mixture=mixture, dtype=dtype))


@pytest.mark.parametrize("scale_type", TYPES)
def test_shape_and_never_above_zero(scale_type: str) -> None:
    setting = Setting(scale_type, dtype=torch.float32)
    log_prior, _ = setting.build()(*setting.inputs(), setting.grid)
    assert log_prior.shape == (2, setting.heads, setting.num_queries, setting.grid.rows * setting.grid.columns)
    assert (log_prior <= 0).all()


def test_the_centre_is_in_cells_of_the_images_own_size() -> None:
    """Without offsets and with a reference of 0, a query looks at the middle of its own image, padding left out."""
    setting = Setting("type1", first=False, dtype=torch.float32)
    prior, inputs = setting.build(), setting.inputs()
    nn.init.zeros_(prior.offset.weight)
    nn.init.zeros_(prior.offset.bias)
    middle = torch.zeros(2, setting.num_queries, 2)
    centres = prior.centres_cells(inputs.content, middle, torch.tensor([[128, 192], [64, 96]]), stride=32)
    assert torch.equal(centres[0], torch.tensor([3.0, 2.0]).expand_as(centres[0]))
    assert torch.equal(centres[1], torch.tensor([1.5, 1.0]).expand_as(centres[1]))


def test_later_layers_are_handed_the_reference() -> None:
    setting = Setting(first=False, dtype=torch.float32)
    prior, inputs = setting.build(), setting.inputs()
    _, reference_point = prior(*inputs, setting.grid)
    assert reference_point is inputs.reference
    with pytest.raises(AssertionError, match="first layer"):
        prior(inputs.content, inputs.query_embed, None, inputs.sizes_hw, setting.grid)


@pytest.mark.parametrize("scale_type", TYPES)
def test_float32_under_autocast(scale_type: str) -> None:
    setting = Setting(scale_type, dtype=torch.float32)
    prior, inputs = setting.build(), setting.inputs()
    expected, point = prior(*inputs, setting.grid)
    with torch.autocast("cpu", torch.bfloat16):
        log_prior, reference_point = prior(*inputs, setting.grid)
    assert log_prior.dtype == reference_point.dtype == torch.float32
    assert torch.equal(log_prior, expected)
    assert torch.equal(reference_point, point)


def test_bfloat16_content_is_computed_in_float32() -> None:
    setting = Setting(dtype=torch.float32)
    prior, inputs = setting.build(), setting.inputs()
    rounded = inputs.content.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = prior(rounded, inputs.query_embed, None, inputs.sizes_hw, setting.grid)
    expected, _ = prior(rounded.float(), inputs.query_embed, None, inputs.sizes_hw, setting.grid)
    assert torch.equal(ours, expected)


@PRECISIONS
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("scale_type", TYPES)
def test_cross_attention_through_the_prior(scale_type: str, mixture: str, dtype: torch.dtype) -> None:
    """What a decoder layer does with the prior: padding, softmax and projections, forward and backward."""
    setting = Setting(scale_type, mixture, dtype=dtype)
    prior, inputs = setting.build(), setting.inputs()
    attention = Attention(setting.hidden, setting.heads, dropout=0.0)
    randomise(attention, seed=4)
    attention.to(dtype)
    sides = setting.grid.rows, setting.grid.columns
    memory = torch.randn(
        2, math.prod(sides), setting.hidden, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    memory = memory.to(dtype).requires_grad_()
    hidden = [torch.arange(side).expand(2, -1) >= torch.tensor([[side], [(side + 1) // 2]]) for side in sides]
    padded = replace(setting.grid, row_is_padding=hidden[0], column_is_padding=hidden[1])
    is_padding = (hidden[0][:, :, None] | hidden[1][:, None]).flatten(1)
    query = inputs.content + inputs.query_embed

    bias, _ = by_the_prior(prior, inputs, replace(setting, grid=padded))
    ours = attention(query, memory, memory, bias)
    weights = dict(attention.named_parameters())
    slow, _ = setting.by_reference(prior, inputs)
    theirs = reference.attention(weights, query, memory, memory, setting.heads, slow, is_padding)
    assert_near(ours, theirs, RELATIVE[dtype])
    leaves = [memory, *inputs.learned(), *prior.parameters(), *attention.parameters()]
    for a, b in zip(gradients(ours, leaves), gradients(theirs, leaves), strict=True):
        assert_near(a, b, RELATIVE[dtype])
