"""Random priors as `build.py` makes them, and the same through tests/reference.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from fovea_detr.config.schema import CONF_DIR
from fovea_detr.fovea import mixture as mixtures
from fovea_detr.fovea.dynamic_scale import DynamicScale, Type1, Type2, Type3, Type4
from fovea_detr.fovea.prior import CellGrid, FoveaPrior
from fovea_detr.fovea.separable import LogPrior
from fovea_detr.model.transformer import FeedForward
from tests import reference

TYPES: dict[str, type[DynamicScale]] = {"type1": Type1, "type2": Type2, "type3": Type3, "type4": Type4}
MIXTURES: dict[str, mixtures.Everywhere] = {
    "none": mixtures.Everywhere(),
    "head": mixtures.HalfTheHeads(),
    "query": mixtures.HalfTheQueries(),
    "head_query": mixtures.HalfTheHeadsAndQueries(),
}
RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-5}
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
GRID = CellGrid(rows=4, columns=6, stride=32)


class Inputs(NamedTuple):
    """content [B, Q, D], query_embed [Q, D], reference [B, Q, 2] or None in layer 0, sizes_hw [B, 2]."""

    content: Tensor
    query_embed: Tensor
    reference: Tensor | None
    sizes_hw: Tensor

    def learned(self) -> list[Tensor]:
        return [x for x in (self.content, self.query_embed, self.reference) if x is not None]


@dataclass(frozen=True)
class Setting:
    """One combination of the axes and of the sizes; `first`: the prior owns the reference's MLP, as in layer 0."""

    scale_type: str = "type3"
    mixture: str = "none"
    smooth: float = 8.0
    heads: int = 4
    num_queries: int = 5
    hidden: int = 24
    grid: CellGrid = GRID
    first: bool = True
    dtype: torch.dtype = torch.float64

    def build(self) -> FoveaPrior:
        """With every parameter random, so that no term is hidden by a zero."""
        mixture = MIXTURES[self.mixture]
        prior = FoveaPrior(
            self.hidden,
            self.heads,
            TYPES[self.scale_type](self.hidden, self.heads),
            self.smooth,
            FeedForward(self.hidden, self.hidden, 2, num_layers=3) if self.first else None,
            mixture.heads(self.heads),
            mixture.queries(self.num_queries),
        )
        randomise(prior, seed=1)
        return prior.to(self.dtype)

    def inputs(self) -> Inputs:
        """For two images, the second one smaller than the feature map; `reference` is None where `first`."""
        draw = torch.Generator().manual_seed(2)

        def leaf(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=torch.float64).to(self.dtype).requires_grad_()

        height, width = self.grid.rows * self.grid.stride, self.grid.columns * self.grid.stride
        return Inputs(
            content=leaf(2, self.num_queries, self.hidden),
            query_embed=leaf(self.num_queries, self.hidden),
            reference=None if self.first else leaf(2, self.num_queries, 2),
            sizes_hw=torch.tensor([[height, width], [height - height // 3, width - 5]]),
        )

    def by_reference(self, prior: FoveaPrior, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """-> log-prior [B, H, Q, K] and reference [B, Q, 2], materialised."""
        return reference.prior(
            dict(prior.named_parameters()),
            *inputs,
            grid=(self.grid.rows, self.grid.columns, self.grid.stride),
            heads=self.heads,
            scale_type=self.scale_type,
            smooth=self.smooth,
            mixture=self.mixture,
        )

    def but(self, **changes: Any) -> Setting:
        return replace(self, **changes)


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


def by_the_prior(prior: FoveaPrior, inputs: Inputs, grid: CellGrid) -> tuple[LogPrior, Tensor]:
    """-> the log-prior and the reference [B, Q, 2]: `forward`, or in float64, which it rounds away, its steps."""
    if inputs.content.dtype == torch.float32:
        return prior(*inputs, grid)
    z = prior.norm(inputs.content + inputs.query_embed)
    point = inputs.reference if prior.reference is None else prior.reference(z)
    assert point is not None
    centres = prior.centres_cells(z, point, inputs.sizes_hw, grid.stride)
    return prior.log_prior(z, centres, grid), point


def yamls(axis: str) -> dict[str, Any]:
    """Every value of an axis in `conf/` by the name of its file."""
    return {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in (CONF_DIR / axis).glob("*.yaml")}


def randomise(module: nn.Module, seed: int) -> None:
    """Small noise around 0, and around 1 for what is multiplied: norm weights and the scales' biases."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            around = 1.0 if name.endswith(("norm.weight", "scale.bias")) else 0.0
            parameter.copy_(around + 0.2 * torch.randn(parameter.shape, generator=draw))


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Of a fixed random weighting of the output, so that no cells' gradients cancel; zeros where there is no path."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = torch.autograd.grad((output * weights.to(output)).sum(), inputs, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def assert_near(ours: Tensor, theirs: Tensor, relative: float) -> None:
    """Elementwise, relative to the largest value of the tensor: sums of many terms cancel."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    scale = max(1.0, theirs.detach().abs().max().item())
    assert (ours - theirs).abs().max().item() <= relative * scale
