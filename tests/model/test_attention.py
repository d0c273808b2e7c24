"""Attention against torch.nn.MultiheadAttention and against the formula, with the same packed weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fovea_detr.model.attention import Attention
from tests import reference
from tests.fovea.priors import assert_near, gradients, randomise

HIDDEN, NUM_QUERIES, NUM_KEYS = 12, 5, 7
HEADS = pytest.mark.parametrize("heads", [1, 3, 4])


def twins(heads: int) -> tuple[Attention, nn.MultiheadAttention]:
    ours, theirs = Attention(HIDDEN, heads, dropout=0.0), nn.MultiheadAttention(HIDDEN, heads, batch_first=True)
    randomise(ours, seed=1)
    theirs.load_state_dict(ours.state_dict())  # strict: the names and the packing are the same
    return ours, theirs


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """query [2, 5, D], key and value [2, 7, D]."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(2, NUM_QUERIES, HIDDEN), (2, NUM_KEYS, HIDDEN), (2, NUM_KEYS, HIDDEN)]
    query, key, value = (torch.randn(shape, generator=draw).requires_grad_() for shape in shapes)
    return query, key, value


def masks(heads: int) -> tuple[Tensor, Tensor]:
    """bias [2, H, Q, K] and is_padding [2, K]."""
    bias = torch.randn(2, heads, NUM_QUERIES, NUM_KEYS, generator=torch.Generator().manual_seed(2))
    is_padding = torch.zeros(2, NUM_KEYS, dtype=torch.bool)
    is_padding[1, 4:] = True
    return bias, is_padding


def assert_same_with_gradients(ours: Tensor, theirs: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> None:
    assert_near(ours, theirs, 1e-5)
    mine, other = gradients(ours, [a for a, _ in pairs]), gradients(theirs, [b for _, b in pairs])
    for a, b in zip(mine, other, strict=True):
        assert_near(a, b, 1e-5)


@HEADS
@pytest.mark.parametrize("masked", ["nothing", "padding", "bias", "bias_and_padding"])
def test_equals_torch(heads: int, masked: str) -> None:
    ours, theirs = twins(heads)
    query, key, value = inputs()
    bias, is_padding = masks(heads)
    both = bias.masked_fill(is_padding[:, None, None], float("-inf"))
    mask = {"nothing": None, "padding": ~is_padding[:, None, None], "bias": bias, "bias_and_padding": both}[masked]
    expected, _ = theirs(
        query,
        key,
        value,
        key_padding_mask=is_padding if masked == "padding" else None,
        attn_mask=None if mask is None or masked == "padding" else mask.flatten(0, 1),
        need_weights=True,
    )
    named = dict(theirs.named_parameters())
    pairs = [(x, x) for x in (query, key, value)] + [(p, named[name]) for name, p in ours.named_parameters()]
    assert_same_with_gradients(ours(query, key, value, mask), expected, pairs)


@HEADS
def test_equals_the_formula(heads: int) -> None:
    ours, _ = twins(heads)
    query, key, value = inputs()
    bias, is_padding = masks(heads)
    expected = reference.attention(dict(ours.named_parameters()), query, key, value, heads, bias, is_padding)
    leaves = [query, key, value, *ours.parameters()]
    mask = bias.masked_fill(is_padding[:, None, None], float("-inf"))
    assert_same_with_gradients(ours(query, key, value, mask), expected, [(x, x) for x in leaves])


def test_starts_as_torch_does() -> None:
    torch.manual_seed(0)
    ours = Attention(HIDDEN, 3, dropout=0.0)
    limit = (6 / (3 * HIDDEN + HIDDEN)) ** 0.5
    assert 0.8 * limit < ours.in_proj_weight.abs().max().item() <= limit
    assert not ours.in_proj_bias.any()
    assert not ours.out_proj.bias.any()


def test_dropout_only_while_training() -> None:
    torch.manual_seed(0)
    attention = Attention(HIDDEN, 3, dropout=0.5)
    query, key, value = inputs()
    assert not torch.equal(attention(query, key, value), attention(query, key, value))
    attention.eval()
    assert torch.equal(attention(query, key, value), attention(query, key, value))
