"""The fovea: from a decoder layer's input to the log-prior on its cross-attention, in separable form.

    z        = LayerNorm(content + query_embed)                    the layer's input, before its self-attention
    ref      = MLP(z), in layer 0 only                             a logit (x, y), reused by every later layer
    centre   = sigmoid(ref) * (w, h) / stride + offset(z)          cells, one offset (x, y) per head
    log_prior = -distance(centre - cell) / divisor                 see dynamic_scale.py and kernel.py

Source: Gao et al., "Fast Convergence of DETR with Spatially Modulated Co-Attention" (SMCA), 2021, and its code, which
fixes 8 heads, width 256 and stride 32; none of these is fixed here. Everything runs in float32, also under autocast:
rounding centres and scales to bfloat16 costs up to 6e-2 of the output, and type4 overflows float16.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fovea_detr.fovea.dynamic_scale import DynamicScale
from fovea_detr.fovea.separable import Separable


@dataclass(frozen=True)
class CellGrid:
    """The feature map of a batch: rows x columns cells, each `stride` pixels wide.

    row_is_padding [B, rows] and column_is_padding [B, columns]: bool; an image is a rectangle, so its padding is
    separable, too. None: no padding.
    """

    rows: int
    columns: int
    stride: int
    row_is_padding: Tensor | None = None
    column_is_padding: Tensor | None = None

    @cached_property
    def hidden(self) -> tuple[Tensor | None, Tensor | None]:
        """Of columns and rows, what hides padding, [B, 1, 1, n]: once for all layers."""
        sides = (self.column_is_padding, self.row_is_padding)
        of_columns, of_rows = (None if side is None else hiding(side, torch.float32) for side in sides)
        return of_columns, of_rows

    def is_padding(self) -> Tensor | None:
        """[B, rows, columns] bool, or None: no padding."""
        if self.row_is_padding is None or self.column_is_padding is None:
            return None
        return self.row_is_padding[:, :, None] | self.column_is_padding[:, None, :]


def hiding(is_padding: Tensor, dtype: torch.dtype) -> Tensor:
    """is_padding [B, n] -> the mask [B, 1, 1, n]: 0, or -inf on padding; in autocast's type, where that is enabled."""
    device = is_padding.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
    mask = torch.zeros(is_padding.shape, dtype=dtype, device=is_padding.device)
    return mask.masked_fill_(is_padding, float("-inf"))[:, None, None]


class Reference(NamedTuple):
    """Of every query, in the images of a batch. logits [B, Q, 2]: the point (x, y) before the sigmoid.

    cells [B, Q, 1, 2]: the same in cells, of the image's own size.
    """

    logits: Tensor
    cells: Tensor

    @classmethod
    def of(cls, logits: Tensor, sizes_hw: Tensor, stride: int) -> Reference:
        """sizes_hw [B, 2] pixels."""
        extent_cells = sizes_hw.flip(-1).to(logits.dtype)[:, None] / stride  # [B, 1, 2] as (w, h)
        return cls(logits, (logits.sigmoid() * extent_cells)[:, :, None])


class FoveaPrior(nn.Module):
    """One decoder layer's fovea.

    smooth: in squared cells. reference: the MLP of layer 0; None in the later layers, which are given layer 0's
    reference. selected_heads [H] and selected_queries [Q]: bool, which use the prior; None: all. cell_centre: cells lie
    at index + 0.5 instead of at their index, as published.
    """

    selected: Tensor | None  # [H or 1, Q or 1, 1] bool

    def __init__(
        self,
        hidden: int,
        heads: int,
        dynamic_scale: DynamicScale,
        smooth: float,
        reference: nn.Module | None,
        selected_heads: Tensor | None = None,
        selected_queries: Tensor | None = None,
        *,
        cell_centre: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.divisor = dynamic_scale.kernel.divisor(smooth)
        self.first_cell = 0.5 if cell_centre else 0.0
        self.norm = nn.LayerNorm(hidden)
        self.reference = reference
        self.offset = nn.Linear(hidden, 2 * heads)
        self.dynamic_scale = dynamic_scale
        self.register_buffer("selected", _selection(selected_heads, selected_queries), persistent=False)

    def forward(
        self, content: Tensor, query_embed: Tensor, reference: Reference | None, sizes_hw: Tensor, grid: CellGrid
    ) -> tuple[Separable, Reference]:
        """content [B, Q, D], query_embed [Q, D] or of each image, reference (None in layer 0), sizes_hw [B, 2] pixels.

        Returns the log-prior, float32, never above 0 and -inf on padding, and the reference for the next layers.
        """
        with torch.autocast(content.device.type, enabled=False):
            z = self.norm(content.float() + query_embed.float())
            if self.reference is not None:
                reference = Reference.of(self.reference(z), sizes_hw, grid.stride)
            assert reference is not None, "the first layer's prior must own a reference"
            return self.log_prior(z, self.centres_cells(z, reference), grid), reference

    def centres_cells(self, z: Tensor, reference: Reference) -> Tensor:
        """z [B, Q, D] -> the prior's centre (x, y) of every head, in cells [B, H, Q, 2]."""
        offsets = self.offset(z.flatten(0, 1)).view(*z.shape[:2], self.heads, 2)  # [B, Q, H, 2]
        return (reference.cells + offsets).transpose(1, 2)

    def log_prior(self, z: Tensor, centres_cells: Tensor, grid: CellGrid) -> Separable:
        """centres [B, H, Q, 2] -> the log-prior at every cell in separable form, -inf on padding."""
        columns, rows = (torch.arange(cells, device=z.device, dtype=z.dtype) for cells in (grid.columns, grid.rows))
        if self.first_cell:
            columns, rows = columns + self.first_cell, rows + self.first_cell
        return self.log_prior_at(z, centres_cells, columns, rows, grid.hidden)

    def log_prior_at(
        self,
        z: Tensor,
        centres_cells: Tensor,
        x: Tensor,
        y: Tensor,
        hidden: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> Separable:
        """The log-prior at any positions: x [columns] and y [rows] in cells from the image's left and top edge.

        hidden: of columns and rows, see CellGrid.
        """
        centre_x, centre_y = centres_cells.split(1, dim=-1)
        distance = self.dynamic_scale(z, centre_x - x, centre_y - y)
        assert distance.xy_x is None or not self.dynamic_scale.per_axis, "a per_axis dynamic scale has no product term"
        of_x, of_y, xy_x, xy_y = self._select(distance)
        by = -1 / self.divisor

        def log(part: Tensor, mask: Tensor | None) -> Tensor:
            return part * by if mask is None else torch.add(mask, part, alpha=by)

        return Separable(log(of_x, hidden[0]), log(of_y, hidden[1]), None if xy_x is None else xy_x * by, xy_y)

    def _select(self, distance: Separable) -> Separable:
        """Zero, by selection, the distance of heads and queries that do not use the prior."""
        if self.selected is None:
            return distance
        return Separable(*(None if part is None else part.where(self.selected, 0.0) for part in distance))  # type: ignore[arg-type]


def _selection(heads: Tensor | None, queries: Tensor | None) -> Tensor | None:
    """[H] and [Q] bool (None: all) -> [H or 1, Q or 1, 1] bool, or None where every head of every query is selected."""
    if heads is None and queries is None:
        return None
    everything = torch.ones(1, dtype=torch.bool)
    heads = everything if heads is None else heads
    queries = everything if queries is None else queries
    return (heads[:, None] & queries[None, :])[..., None]
