"""The axis' values one by one: their formulas, how many scales they learn, and how they start."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import get_class
from torch import Tensor

from fovea_detr.fovea.dynamic_scale import Distance, DynamicScale
from tests import reference
from tests.fovea.priors import TYPES, Setting, randomise, yamls

HIDDEN, HEADS = 8, 3


def offsets() -> tuple[Tensor, Tensor, Tensor]:
    """z [1, 2, D], dx2 [1, H, 2, 5 columns], dy2 [1, H, 2, 4 rows]."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(1, 2, HIDDEN, generator=draw)
    dx, dy = (torch.randn(1, HEADS, 2, n, generator=draw) for n in (5, 4))
    return z, dx.square(), dy.square()


def expand(distance: Distance) -> Tensor:
    """The whole distance [B, H, Q, rows, columns] of its separable parts."""
    whole = distance.x[..., None, :] + distance.y[..., :, None]
    if distance.xy_x is not None and distance.xy_y is not None:
        whole = whole + distance.xy_x[..., None, :] * distance.xy_y[..., :, None]
    return whole


def start(scale_type: str) -> DynamicScale:
    return TYPES[scale_type](HIDDEN, HEADS)


@pytest.mark.parametrize("scale_type", TYPES)
def test_formula(scale_type: str) -> None:
    z, dx2, dy2 = offsets()
    axis = start(scale_type)
    randomise(axis, seed=1)
    ours = expand(axis(z, dx2, dy2))
    s = axis.scale(z).unflatten(-1, (HEADS, -1)) if axis.scale is not None else z.new_zeros(1, 2, HEADS, 0)
    for head in range(HEADS):
        for query in range(2):
            for row in range(4):
                for column in range(5):
                    d2 = torch.stack((dx2[0, head, query, column], dy2[0, head, query, row]))
                    one = reference.distance(scale_type, d2[None, None, None, None], s[:, query, None, head, None])
                    assert ours[0, head, query, row, column].item() == pytest.approx(one.item(), rel=1e-5)


@pytest.mark.parametrize("scale_type", TYPES)
def test_scales_start_at_one_for_any_input(scale_type: str) -> None:
    axis = start(scale_type)
    assert axis.scales_per_head == reference.SCALES_PER_HEAD[scale_type]
    if axis.scale is None:
        assert not list(axis.parameters())
    else:
        assert axis.scale.weight.shape == (HEADS * axis.scales_per_head, HIDDEN)
        assert torch.equal(axis.scale(offsets()[0]), torch.ones(1, 2, HEADS * axis.scales_per_head))


def test_types_1_to_3_start_equal_and_type4_does_not() -> None:
    begin = {scale_type: expand(start(scale_type)(*offsets())) for scale_type in TYPES}
    assert torch.equal(begin["type1"], begin["type2"])
    assert torch.equal(begin["type1"], begin["type3"])
    assert not torch.allclose(begin["type1"], begin["type4"])
    _, dx2, dy2 = offsets()
    assert torch.allclose(begin["type4"], begin["type1"] + dx2[..., None, :] * dy2[..., :, None])


def test_priors_of_types_1_to_3_start_equal() -> None:
    """The same through the whole prior, with the same reference and offsets, bit for bit."""
    outputs = {}
    for scale_type in TYPES:
        setting = Setting(scale_type, first=False, dtype=torch.float32)
        prior = setting.build()
        prior.dynamic_scale.reset_parameters()
        prior.offset.load_state_dict(Setting("type1", dtype=torch.float32, first=False).build().offset.state_dict())
        prior.norm.load_state_dict(Setting("type1", dtype=torch.float32, first=False).build().norm.state_dict())
        outputs[scale_type] = prior(*setting.inputs(), setting.grid)[0].dense()
    assert torch.equal(outputs["type1"], outputs["type2"])
    assert torch.equal(outputs["type1"], outputs["type3"])
    assert not torch.allclose(outputs["type1"], outputs["type4"])


def test_every_value_has_a_yaml_of_its_name() -> None:
    nodes = yamls("dynamic_scale")
    assert {name: get_class(node["_target_"]) for name, node in nodes.items()} == TYPES
    assert all(node["name"] == name for name, node in nodes.items())
