"""Attention against torch.nn.MultiheadAttention and against the formula, with the same packed weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fovea_detr.fovea.prior import hiding
from fovea_detr.fovea.separable import Separable
from fovea_detr.model.attention import Attention, CrossAttention, SelfAttention, dropped_attention, for_layers
from fovea_detr.model.transformer import Dropout
from tests import reference
from tests.fovea.priors import assert_near, gradients, randomise

HIDDEN, NUM_QUERIES, ROWS, COLUMNS = 12, 5, 2, 4
NUM_KEYS = ROWS * COLUMNS
HEADS = pytest.mark.parametrize("heads", [1, 3, 4])


def twins(heads: int, kind: type[Attention] = CrossAttention) -> tuple[Any, nn.MultiheadAttention]:
    ours, theirs = kind(HIDDEN, heads, dropout=0.0), nn.MultiheadAttention(HIDDEN, heads, batch_first=True)
    randomise(ours, seed=1)
    theirs.load_state_dict(ours.state_dict())  # strict: the names and the packing are the same
    return ours, theirs


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """query [2, Q, D], key and value [2, K, D]."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(2, NUM_QUERIES, HIDDEN), (2, NUM_KEYS, HIDDEN), (2, NUM_KEYS, HIDDEN)]
    query, key, value = (torch.randn(shape, generator=draw).requires_grad_() for shape in shapes)
    return query, key, value


def crossed(ours: CrossAttention, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """[B, n, D] each -> [B, Q, D]."""
    (memory,) = for_layers([ours], key.flatten(0, 1), value.flatten(0, 1), len(key))
    return ours(query.flatten(0, 1), memory, **options).view_as(query)


def hidden_unless(may_attend: Tensor) -> Tensor:
    """A bool mask, True where a key is seen -> one that is added to the scores."""
    return torch.zeros(may_attend.shape).masked_fill(~may_attend, float("-inf"))


def padding() -> Tensor:
    """[2, K] bool: of the second image the last column of the grid."""
    is_padding = torch.zeros(2, ROWS, COLUMNS, dtype=torch.bool)
    is_padding[1, :, -1] = True
    return is_padding.flatten(1)


def some_keys(heads: int) -> Tensor:
    """[2, H, Q, K] bool, every query with a key that it may attend to."""
    allowed = torch.rand(2, heads, NUM_QUERIES, NUM_KEYS, generator=torch.Generator().manual_seed(2)) > 0.5
    allowed[..., 0] = True
    return allowed


def random_prior(heads: int, padded: bool) -> Separable:
    draw = torch.Generator().manual_seed(2)
    x, y, xy_x, xy_y = (torch.randn(2, heads, NUM_QUERIES, n, generator=draw) for n in (COLUMNS, ROWS, COLUMNS, ROWS))
    if padded:
        x[1, ..., -1] = float("-inf")
    return Separable(x, y, xy_x, xy_y)


def assert_same_with_gradients(ours: Tensor, theirs: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> None:
    assert_near(ours, theirs, 1e-5)
    mine, other = gradients(ours, [a for a, _ in pairs]), gradients(theirs, [b for _, b in pairs])
    for a, b in zip(mine, other, strict=True):
        assert_near(a, b, 1e-5)


@HEADS
@pytest.mark.parametrize("masked", ["nothing", "padding", "some_keys", "prior", "prior_and_padding"])
def test_equals_torch(heads: int, masked: str) -> None:
    """torch's boolean masks are True where a key is hidden; its float masks are added to the scores."""
    ours, theirs = twins(heads)
    query, key, value = inputs()
    options, torchs = {}, {}
    if masked == "padding":
        options, torchs = {"mask": hiding(padding(), torch.float32)}, {"key_padding_mask": padding()}
    elif masked == "some_keys":
        options, torchs = {"mask": hidden_unless(some_keys(heads))}, {"attn_mask": ~some_keys(heads).flatten(0, 1)}
    elif masked != "nothing":
        prior = random_prior(heads, padded=masked == "prior_and_padding")
        options, torchs = {"prior": prior}, {"attn_mask": prior.dense().flatten(0, 1)}
    expected, _ = theirs(query, key, value, **torchs, need_weights=True)
    named = dict(theirs.named_parameters())
    pairs = [(x, x) for x in (query, key, value)] + [(p, named[name]) for name, p in ours.named_parameters()]
    assert_same_with_gradients(crossed(ours, query, key, value, **options), expected, pairs)


@HEADS
@pytest.mark.parametrize("padded", [False, True])
def test_self_attention_equals_torch(heads: int, padded: bool) -> None:
    ours, theirs = twins(heads, SelfAttention)
    _, place, value = inputs()
    mask, torchs = (hiding(padding(), torch.float32), {"key_padding_mask": padding()}) if padded else (None, {})
    expected, _ = theirs(place, place, value, **torchs, need_weights=True)
    result = ours(place.flatten(0, 1), value.flatten(0, 1), 2, mask).view_as(expected)
    named = dict(theirs.named_parameters())
    pairs = [(x, x) for x in (place, value)] + [(p, named[name]) for name, p in ours.named_parameters()]
    assert_same_with_gradients(result, expected, pairs)


def test_the_keys_and_values_of_all_layers_equal_those_of_each() -> None:
    """With gradients, of layers that see the same cells."""
    layers = [twins(3)[0] for _ in range(3)]
    for seed, layer in enumerate(layers):
        randomise(layer, seed)
    query, key, value = inputs()
    rows, keys, values = (x.flatten(0, 1) for x in (query, key, value))
    seen_by_layer = for_layers(layers, keys, values, batch=2)
    together = torch.stack([layer(rows, seen) for layer, seen in zip(layers, seen_by_layer, strict=True)])
    alone = torch.stack([crossed(layer, query, key, value).flatten(0, 1) for layer in layers])
    leaves = [query, key, value, *(parameter for layer in layers for parameter in layer.parameters())]
    assert_same_with_gradients(together, alone, [(x, x) for x in leaves])


@HEADS
def test_equals_the_formula(heads: int) -> None:
    ours, _ = twins(heads)
    query, key, value = inputs()
    log_prior = random_prior(heads, padded=False).dense()
    expected = reference.attention(dict(ours.named_parameters()), query, key, value, heads, log_prior, padding())
    leaves = [query, key, value, *ours.parameters()]
    result = crossed(ours, query, key, value, prior=random_prior(heads, padded=True))
    assert_same_with_gradients(result, expected, [(x, x) for x in leaves])


def test_a_mask_and_a_prior_exclude_each_other() -> None:
    with pytest.raises(AssertionError):
        crossed(twins(1)[0], *inputs(), mask=hidden_unless(some_keys(1)), prior=random_prior(1, padded=False))


def test_starts_as_torch_does() -> None:
    torch.manual_seed(0)
    ours = Attention(HIDDEN, 3, dropout=0.0)
    limit = (6 / (3 * HIDDEN + HIDDEN)) ** 0.5
    assert 0.8 * limit < ours.in_proj_weight.abs().max().item() <= limit
    assert not ours.in_proj_bias.any()
    assert not ours.out_proj.bias.any()


def test_dropout_only_while_training() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(HIDDEN, 3, dropout=0.5)
    assert not torch.equal(crossed(attention, *inputs()), crossed(attention, *inputs()))
    attention.eval()
    assert torch.equal(crossed(attention, *inputs()), crossed(attention, *inputs()))


@pytest.mark.parametrize("masked", ["nothing", "padding", "some_keys"])
def test_attention_with_dropout_is_the_formulas_with_what_was_dropped(masked: str) -> None:
    """With the identity as values the output is the weights, and so the dropout mask; the same seed repeats it."""
    draw = torch.Generator().manual_seed(4)
    shapes = [(2, 3, NUM_QUERIES, 4), (2, 3, NUM_KEYS, 4), (2, 3, NUM_KEYS, 4)]
    leaves = [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes]
    query, key, value = leaves
    masks = {"padding": hiding(padding(), torch.float64), "some_keys": hidden_unless(some_keys(3)).double()}
    mask = masks.get(masked)

    def dropped(values: Tensor) -> Tensor:
        torch.manual_seed(3)
        return dropped_attention(query, key, values, mask, 0.4)

    identity = torch.eye(NUM_KEYS, dtype=torch.float64).expand(2, 3, -1, -1)
    weights = functional.scaled_dot_product_attention(query, key, identity, attn_mask=mask)
    keep = torch.where(weights > 0, dropped(identity) / weights, 0.0).detach()
    assert ((keep == 0) | ((keep - 1 / 0.6).abs() < 1e-9)).all()
    assert 0 < (keep == 0).sum() < keep.numel()
    ours, theirs = dropped(value), (weights * keep) @ value
    assert_near(ours, theirs, 1e-12)
    for a, b in zip(gradients(ours, leaves), gradients(theirs, leaves), strict=True):
        assert_near(a, b, 1e-12)


def test_dropout_drops_the_fraction_asked_for_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropout, x = Dropout(0.25), torch.ones(400, 500)
    out = dropout(x)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert out.mean().item() == pytest.approx(1, abs=0.01)
    assert dropout.eval()(x) is x
    assert Dropout(0.0)(x) is x
