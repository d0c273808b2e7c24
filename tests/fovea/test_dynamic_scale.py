"""The axis' values one by one: their formulas, how many scales they learn, how they start, and type5's bounds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fovea_detr.fovea import attend
from fovea_detr.fovea.dynamic_scale import LARGEST_TILT, DynamicScale, Type5
from fovea_detr.fovea.prior import CellGrid
from fovea_detr.fovea.separable import Separable
from tests import reference
from tests.fovea.priors import KERNELS, SHAPES, TYPES, Setting, by_the_prior, randomise

HIDDEN, HEADS = 8, 3
FORMULAS = [shape for shape in SHAPES if shape[0] in reference.SCALES_PER_HEAD]
EQUAL_STARTS = ["type1", "type2", "type3", "type5"]


def offsets() -> tuple[Tensor, Tensor, Tensor]:
    """z [1, 2, D], dx [1, H, 2, 5 columns], dy [1, H, 2, 4 rows]."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(1, 2, HIDDEN, generator=draw)
    dx, dy = (torch.randn(1, HEADS, 2, n, generator=draw) for n in (5, 4))
    return z, dx, dy


def expand(distance: Separable) -> Tensor:
    """The whole distance [B, H, Q, rows, columns] of its separable parts."""
    whole = distance.x[..., None, :] + distance.y[..., :, None]
    if distance.xy_x is not None and distance.xy_y is not None:
        whole = whole + distance.xy_x[..., None, :] * distance.xy_y[..., :, None]
    return whole


def start(scale_type: str, kernel: str = "gaussian") -> DynamicScale:
    return TYPES[scale_type](HIDDEN, HEADS, KERNELS[kernel])


@pytest.mark.parametrize(("scale_type", "kernel"), FORMULAS)
def test_formula(scale_type: str, kernel: str) -> None:
    z, dx, dy = offsets()
    axis = start(scale_type, kernel)
    randomise(axis, seed=1)
    ours = expand(axis(z, dx, dy))
    s = axis.scale(z).unflatten(-1, (HEADS, -1)) if axis.scale is not None else z.new_zeros(1, 2, HEADS, 0)
    for head in range(HEADS):
        for query in range(2):
            for row in range(4):
                for column in range(5):
                    d = torch.stack((dx[0, head, query, column], dy[0, head, query, row]))[None, None, None, None]
                    one = reference.distance(scale_type, d, s[:, query, None, head, None], kernel)
                    assert ours[0, head, query, row, column].item() == pytest.approx(one.item(), rel=1e-5)


@pytest.mark.parametrize(("scale_type", "count"), reference.SCALES_PER_HEAD.items())
def test_number_of_scales(scale_type: str, count: int) -> None:
    assert TYPES[scale_type].scales_per_head == count


@pytest.mark.parametrize("scale_type", TYPES)
def test_scales_start_equal_for_any_input(scale_type: str) -> None:
    """The published ones at 1; type5's logarithms and tilt at 0."""
    axis = start(scale_type)
    assert axis.start == {"type5": 0.0, "type2": 1.0, "type3": 1.0, "type4": 1.0}.get(scale_type, axis.start)
    if axis.scale is None:
        assert not list(axis.parameters())
    else:
        assert axis.scale.weight.shape == (HEADS * axis.scales_per_head, HIDDEN)
        assert torch.equal(axis.scale(offsets()[0]), torch.full((1, 2, HEADS * axis.scales_per_head), axis.start))


def test_types_1_to_3_and_5_start_equal_and_type4_does_not() -> None:
    begin = {scale_type: expand(start(scale_type)(*offsets())) for scale_type in TYPES}
    for scale_type in EQUAL_STARTS:
        assert torch.equal(begin["type1"], begin[scale_type])
    assert not torch.allclose(begin["type1"], begin["type4"])
    _, dx, dy = offsets()
    quartic = dx.square()[..., None, :] * dy.square()[..., :, None]
    assert torch.allclose(begin["type4"], begin["type1"] + quartic)


def test_priors_of_types_1_to_3_and_5_start_equal() -> None:
    """The same through the whole prior, with the same reference and offsets, bit for bit."""
    outputs = {}
    for scale_type in TYPES:
        setting = Setting(scale_type, first=False, dtype=torch.float32)
        prior = setting.build()
        prior.dynamic_scale.reset_parameters()
        prior.offset.load_state_dict(Setting("type1", dtype=torch.float32, first=False).build().offset.state_dict())
        prior.norm.load_state_dict(Setting("type1", dtype=torch.float32, first=False).build().norm.state_dict())
        outputs[scale_type] = by_the_prior(prior, setting.inputs(), setting.grid)[0].dense()
    for scale_type in EQUAL_STARTS:
        assert torch.equal(outputs["type1"], outputs[scale_type])
    assert not torch.allclose(outputs["type1"], outputs["type4"])


# ---- type5: positive definite and finite whatever the weights ----------------------------------------------------


def type5(u: float, v: float, w: float) -> Type5:
    axis = Type5(HIDDEN, 1)
    assert axis.scale is not None
    axis.scale.bias.data = torch.tensor([u, v, w])
    return axis


def test_type5_is_type3_without_a_tilt_and_can_tilt_both_ways() -> None:
    z, dx, dy = torch.zeros(1, 1, HIDDEN), torch.tensor([[[[1.0]]]]), torch.tensor([[[[1.0]]]])
    narrow = expand(type5(math.log(2.0), 0.0, 0.0)(z, dx, dy)).item()
    assert narrow == pytest.approx(2.0**2 + 1, rel=0.01)  # 5 tanh(0.69 / 5) is 0.6 % below 0.69
    falling, rising = (expand(type5(0.0, v, 0.0)(z, dx, dy)).item() for v in (-1.0, 1.0))
    v = LARGEST_TILT * math.tanh(1 / LARGEST_TILT)
    assert falling == pytest.approx(1 - 2 * v + v**2 + 1, rel=1e-5)
    assert rising == pytest.approx(1 + 2 * v + v**2 + 1, rel=1e-5)


@pytest.mark.parametrize("size", [1.0, 100.0, 1e30, float("inf")])
@pytest.mark.parametrize("far", [1.0, 1e4, 1e30, float("inf")])
def test_type5_is_finite_and_never_negative(size: float, far: float) -> None:
    """Whatever is learned and however far the centre: every part, the whole distance, every gradient."""
    draw = torch.Generator().manual_seed(0)
    axis = Type5(HIDDEN, HEADS)
    assert axis.scale is not None
    for signs in (torch.randn(HEADS * 3, generator=draw) for _ in range(20)):
        axis.scale.bias.data = signs.sign() * size if math.isinf(size) else signs * size
        z = torch.randn(1, 50, HIDDEN, generator=draw).requires_grad_()
        dx, dy = (torch.randn(1, HEADS, 50, n, generator=draw).mul_(far).requires_grad_() for n in (7, 6))
        distance = axis(z, dx, dy)
        assert all(part is not None and not part.isnan().any() for part in distance)
        whole = distance.dense()
        assert whole.isfinite().all()
        assert (whole >= 0).all()
        for gradient in torch.autograd.grad(whole.sum(), [z, dx, dy, *axis.parameters()]):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("tilt", [-1e3, -3.0, 3.0, 1e3])
@pytest.mark.parametrize("widths", [(0.0, 0.0), (3.0, -3.0), (-100.0, 100.0), (100.0, 100.0)])
def test_type5_is_exact_along_its_narrowest_distance(tilt: float, widths: tuple[float, float]) -> None:
    """Where x, y and product term cancel most, float32 is right to a thousandth, and never below 0."""
    axis = type5(widths[0], tilt, widths[1])
    z, dy = torch.zeros(1, 1, HIDDEN), torch.linspace(-300, 300, 4001)[None, None, :, None]
    matrix = reference.precision(axis.scale(z).double())[0, 0]  # type: ignore[misc]
    dx = (-matrix[0, 1] / matrix[0, 0] * dy.double()).float().clamp(-1e6, 1e6)
    ours = expand(axis(z, dx, dy)).flatten()
    theirs = reference.quadratic_form(matrix, torch.cat((dx, dy), dim=-1).double()).flatten()
    assert (ours >= 0).all()
    assert ((ours - theirs).abs() <= 1e-3 * theirs).all()


@pytest.mark.parametrize("path", ["tiled", "mask"])
@pytest.mark.parametrize("mixture", ["none", "head_query"])
def test_attention_through_an_exploding_type5_is_finite(path: str, mixture: str) -> None:
    """Weights of 1e30 in the scales and in the centres' offsets, and padding: -inf there, never NaN anywhere."""
    hidden = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    grid = CellGrid(4, 6, 32, torch.zeros(2, 4, dtype=torch.bool), hidden)
    setting = Setting("type5", mixture, grid=grid, dtype=torch.float32)
    prior, inputs = setting.build(), setting.inputs()
    for linear in (prior.dynamic_scale.scale, prior.offset):
        assert isinstance(linear, nn.Linear)
        linear.weight.data.mul_(1e30)
    with torch.autocast("cpu", torch.bfloat16):
        log_prior, _ = prior(*inputs, grid)
    dense = log_prior.dense().unflatten(-1, (4, 6))
    assert not dense.isnan().any()
    assert (dense <= 0).all()
    assert torch.equal(dense == -math.inf, hidden[:, None, None, None].expand_as(dense))
    query, key, value = (torch.randn(2, setting.heads, n, 8, requires_grad=True) for n in (5, 24, 24))
    out = attend.PATHS[path](query, key, value, log_prior, 0.0)
    leaves = [query, key, value, *inputs.learned(), *prior.parameters()]
    for result in (out, *torch.autograd.grad(out.sum(), leaves, allow_unused=True)):
        assert result is None or result.isfinite().all()
