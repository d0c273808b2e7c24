"""Random priors as `build.py` makes them, and the same through tests/reference.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import Tensor, nn

from fovea_detr.config.schema import CONF_DIR
from fovea_detr.fovea.dynamic_scale import DynamicScale
from fovea_detr.fovea.kernel import Gaussian
from fovea_detr.fovea.mixture import Everywhere
from fovea_detr.fovea.prior import CellGrid, FoveaPrior, Reference
from fovea_detr.fovea.separable import Separable
from fovea_detr.model.transformer import FeedForward
from tests import reference


def yamls(axis: str) -> dict[str, Any]:
    """Every value of an axis in `conf/` by the name of its file."""
    return {
        path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in sorted((CONF_DIR / axis).glob("*.yaml"))
    }


def classes(axis: str) -> dict[str, Any]:
    """The class of every value of an axis; a new value is tested as soon as its yaml is there."""
    return {name: get_class(node["_target_"]) for name, node in yamls(axis).items()}


TYPES: dict[str, type[DynamicScale]] = classes("dynamic_scale")
MIXTURES: dict[str, Everywhere] = {name: mixture() for name, mixture in classes("mixture").items()}
KERNELS: dict[str, Gaussian] = {name: kernel() for name, kernel in classes("kernel").items()}
# Every dynamic scale with every kernel that it works with.
SHAPES = [(t, k) for k in KERNELS for t in TYPES if TYPES[t].per_axis or not KERNELS[k].per_axis]
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
    kernel: str = "gaussian"
    smooth: float = 8.0
    heads: int = 4
    num_queries: int = 5
    hidden: int = 24
    grid: CellGrid = GRID
    first: bool = True
    cell_centre: bool = False
    dtype: torch.dtype = torch.float64

    def build(self) -> FoveaPrior:
        """With every parameter random, so that no term is hidden by a zero."""
        mixture = MIXTURES[self.mixture]
        prior = FoveaPrior(
            self.hidden,
            self.heads,
            TYPES[self.scale_type](self.hidden, self.heads, KERNELS[self.kernel]),
            self.smooth,
            FeedForward(self.hidden, self.hidden, 2, num_layers=3) if self.first else None,
            mixture.heads(self.heads),
            mixture.queries(self.num_queries),
            cell_centre=self.cell_centre,
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
        if self.scale_type not in reference.SCALES_PER_HEAD or self.kernel not in ("gaussian", "laplace"):
            pytest.skip(f"{self.scale_type} with {self.kernel} has no formula in tests/reference.py")
        return reference.prior(
            dict(prior.named_parameters()),
            *inputs,
            grid=(self.grid.rows, self.grid.columns, self.grid.stride),
            heads=self.heads,
            scale_type=self.scale_type,
            smooth=self.smooth,
            mixture=self.mixture,
            kernel=self.kernel,
            cell_centre=self.cell_centre,
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
    "cell_centre": Setting(cell_centre=True),
}


def reference_of(inputs: Inputs, grid: CellGrid) -> Reference | None:
    return None if inputs.reference is None else Reference.of(inputs.reference, inputs.sizes_hw, grid.stride)


def by_the_prior(prior: FoveaPrior, inputs: Inputs, grid: CellGrid) -> tuple[Separable, Tensor]:
    """-> the log-prior and the reference [B, Q, 2]: `forward`, or in float64, which it rounds away, its steps."""
    if inputs.content.dtype == torch.float32:
        log_prior, point = prior(*inputs._replace(reference=reference_of(inputs, grid)), grid)
        return log_prior, point.logits
    z = prior.norm(inputs.content + inputs.query_embed)
    logits = inputs.reference if prior.reference is None else prior.reference(z)
    assert logits is not None
    centres = prior.centres_cells(z, Reference.of(logits, inputs.sizes_hw, grid.stride))
    return prior.log_prior(z, centres, grid), logits


def randomise(module: nn.Module, seed: int) -> None:
    """Small noise around 0; norm weights and the scales' biases, constant so far, around what they are."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            around = parameter.mean() if name.endswith(("norm.weight", "scale.bias")) else 0.0
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
