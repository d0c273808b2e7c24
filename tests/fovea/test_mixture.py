"""Which heads and queries use the prior; elsewhere neither its values nor its infinities reach result or gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fovea_detr.fovea.prior import FoveaPrior
from tests import reference
from tests.fovea.priors import MIXTURES, TYPES, Inputs, Setting

SELECTIVE = [name for name in MIXTURES if name != "none"]
LEARNED = [name for name, cls in TYPES.items() if cls.scales_per_head]


@pytest.mark.parametrize(("num_heads", "selected"), [(1, 1), (2, 1), (3, 2), (8, 4)])
def test_the_first_half_of_the_heads(num_heads: int, selected: int) -> None:
    assert MIXTURES["head"].queries(5) is None
    heads = MIXTURES["head"].heads(num_heads)
    assert heads is not None
    assert heads.tolist() == [head < selected for head in range(num_heads)]


@pytest.mark.parametrize(("num_queries", "plain"), [(1, 0), (2, 1), (5, 2), (300, 150)])
def test_all_but_the_first_half_of_the_queries(num_queries: int, plain: int) -> None:
    assert MIXTURES["query"].heads(8) is None
    queries = MIXTURES["query"].queries(num_queries)
    assert queries is not None
    assert queries.tolist() == [query >= plain for query in range(num_queries)]


def test_none_and_both() -> None:
    assert MIXTURES["none"].heads(8) is None
    assert MIXTURES["none"].queries(5) is None
    both = MIXTURES["head_query"]
    heads, queries = both.heads(8), both.queries(5)
    assert heads is not None
    assert queries is not None
    assert (heads.sum(), queries.sum()) == (4, 3)


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("num_queries", [1, 5, 6])
@pytest.mark.parametrize("heads", [1, 3, 4])
@pytest.mark.parametrize("scale_type", ["type4", "type5"])
def test_log_prior_is_exactly_zero_elsewhere(mixture: str, num_queries: int, heads: int, scale_type: str) -> None:
    setting = Setting(scale_type, mixture, heads=heads, num_queries=num_queries, dtype=torch.float32)
    log_prior = setting.build()(*setting.inputs(), setting.grid)[0].dense()
    selected = reference.uses_prior(mixture, heads, num_queries).T  # [H, Q]
    assert (log_prior[:, ~selected] == 0).all()
    assert (log_prior[:, selected] != 0).all()


def explosive(setting: Setting, scale: float, mixture: str) -> tuple[FoveaPrior, Inputs]:
    """A prior whose scales are `scale` for the heads and queries that do not use it, and about 1 for the others.

    Without the norm, so that the first number of a query's content decides whether it explodes.
    """
    prior, inputs = setting.build(), setting.inputs()
    selected = reference.uses_prior(mixture, setting.heads, setting.num_queries)  # [Q, H]
    prior.norm = nn.Identity()  # type: ignore[assignment]
    dynamic = prior.dynamic_scale.scale
    assert dynamic is not None
    with torch.no_grad():
        inputs.content[..., 0] = torch.where(selected.any(1), 0.0, 1.0)
        inputs.query_embed[:, 0] = 0
        dynamic.weight[:, 0] = scale
        plain_heads = ~selected.any(0).repeat_interleave(prior.dynamic_scale.scales_per_head)
        dynamic.bias[plain_heads] = scale
    return prior, inputs


def assert_harmless(scale_type: str, mixture: str, scale: float) -> None:
    """Exploding where it is not used: the forward pass is as with a scale of 1, and every gradient is finite."""
    setting = Setting(scale_type, mixture, dtype=torch.float32)
    prior, inputs = explosive(setting, scale, mixture)
    log_prior, point = prior(*inputs, setting.grid)
    tame, _ = explosive(setting, 1.0, mixture)
    assert torch.equal(log_prior.dense(), tame(*inputs, setting.grid)[0].dense())
    leaves: list[Tensor] = [inputs.content, inputs.query_embed, *prior.parameters()]
    for gradient in torch.autograd.grad(log_prior.dense().sum() + point.logits.sum(), leaves):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("mixture", SELECTIVE)
@pytest.mark.parametrize("scale_type", LEARNED)
def test_overflowing_distances_do_not_reach_unselected_heads_and_queries(scale_type: str, mixture: str) -> None:
    """Squared, it is still finite; times the squared offsets it is not."""
    assert_harmless(scale_type, mixture, 8e18)


@pytest.mark.parametrize("mixture", SELECTIVE)
@pytest.mark.parametrize("scale_type", LEARNED)
def test_infinite_scales_do_not_reach_unselected_heads_and_queries(scale_type: str, mixture: str) -> None:
    """1e25 squared is infinite in float32: 0 x inf must not appear on the way back either."""
    assert_harmless(scale_type, mixture, 1e25)
