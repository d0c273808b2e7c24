"""DETR: backbone, transformer, and a class and a box head shared by every decoder layer."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from fovea_detr.config.schema import Config
from fovea_detr.fovea.dynamic_scale import DynamicScale
from fovea_detr.fovea.prior import CellGrid
from fovea_detr.fovea.separable import Separable
from fovea_detr.model.backbone import Backbone
from fovea_detr.model.masks import MaskAttention, MaskHead, Seen, masks_from
from fovea_detr.model.pixels import normalised
from fovea_detr.model.transformer import Decoder, Encoder, FeedForward
from fovea_detr.types import Batch, Predictions

MASK_STRIDE = 4  # pixels of one cell of a mask
CLASS_PRIOR = 0.01  # the probability of any class at the start of training (Lin et al., focal loss)


class DETR(nn.Module):
    """Plain, or with the fovea prior in its decoder. Its input is images (uint8, or normalised floats) and sizes.

    class_outputs: C, the number of classes + 1. has_reference: [Q] bool, queries whose boxes start from the fovea's
    reference point; None: all of them, if the decoder has a fovea. activation: "sigmoid" (its outputs start at
    probability 0.01) or "softmax".
    """

    has_reference: Tensor | None
    config: Config | None = None  # what `build_model` has built it from

    def __init__(
        self,
        backbone: Backbone,
        encoder: Encoder,
        decoder: Decoder,
        position: nn.Module,
        *,
        hidden: int,
        num_queries: int,
        class_outputs: int,
        has_reference: Tensor | None = None,
        activation: str = "sigmoid",
    ) -> None:
        super().__init__()
        self.activation = activation
        self.sides_multiple = 1  # pixels; in training the images' sides are padded to whole multiples of it
        self.backbone = backbone
        self.position = position
        self.input_proj = nn.Conv2d(backbone.channels, hidden, kernel_size=1)
        self.encoder = encoder
        self.decoder = decoder
        self.query_embed = nn.Embedding(num_queries, hidden)
        self.class_head = nn.Linear(hidden, class_outputs)
        self.box_head = FeedForward(hidden, hidden, 4, num_layers=3)
        self.bbox_attention: MaskAttention | None = None  # this and `mask_head`: of a model with masks
        self.mask_head: MaskHead | None = None
        self.mask_prior = False  # whether the last layer's log-prior is added to the mask attention's scores
        self.detector_is_frozen = False  # everything but these two: its forward pass then makes no graph
        self.register_buffer("has_reference", has_reference, persistent=False)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """As published: Xavier for every matrix of the transformer; learned scales keep their own initialisation."""
        for stack in (self.encoder, self.decoder):
            for parameter in stack.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        for module in self.decoder.modules():
            if isinstance(module, DynamicScale):
                module.reset_parameters()
        if self.activation == "sigmoid":
            nn.init.constant_(self.class_head.bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))

    def forward(self, batch: Batch) -> Predictions:
        with torch.no_grad() if self.detector_is_frozen else nullcontext():
            out, seen = self.detect(batch)
        if seen is not None and self.bbox_attention is not None and self.mask_head is not None:
            out.mask_head = masks_from(self.bbox_attention, self.mask_head, seen)
        return out

    def detect(self, batch: Batch) -> tuple[Predictions, Seen | None]:
        """Logits and boxes; and of a model with masks, what its mask head sees."""
        images = normalised(batch.images, batch.sizes_hw)
        images = padded_to(images, self.sides_multiple) if self.training else images
        pyramid: list[Tensor] = []
        features = self.backbone(images) if self.mask_head is None else self.backbone(images, pyramid)
        rows, columns = features.shape[-2:]  # of [B, channels, rows, columns]
        of_rows, of_columns = (
            padding_of_cells(batch.sizes_hw[:, side], images.shape[2 + side], features.shape[2 + side])
            for side in (0, 1)
        )
        grid = CellGrid(rows, columns, self.backbone.stride, of_rows, of_columns)
        is_padding = grid.is_padding()  # [B, rows, columns]
        assert is_padding is not None
        position = self.position(is_padding)
        cells = self.input_proj(features).flatten(2).transpose(1, 2)  # [B, K, D]
        memory = self.encoder(cells, position, is_padding.flatten(1))
        priors: list[Separable] | None = [] if self.mask_prior else None
        outputs, reference = self.decoder(self.query_embed.weight, memory, position, batch.sizes_hw, grid, priors)
        out = self.heads(outputs, reference)
        if self.mask_head is None:
            return out, None
        prior = priors[0] if priors else None
        height, width = batch.images.shape[-2:]
        up = MASK_STRIDE - 1  # not -(-height // MASK_STRIDE): ONNX rounds negative quotients the other way
        size = ((height + up) // MASK_STRIDE, (width + up) // MASK_STRIDE)
        return out, Seen(outputs[-1], memory, cells, is_padding, pyramid[:3], prior, size)

    def heads(self, outputs: Tensor, reference: Tensor | None) -> Predictions:
        """outputs [L, B, Q, D], reference logits [B, Q, 2] or None -> Predictions in float32."""
        with torch.autocast(outputs.device.type, enabled=False):
            logits = self.class_head(outputs.float())
            boxes = self.box_head(outputs.float())
        if reference is not None:
            if self.has_reference is not None:
                reference = reference.where(self.has_reference[:, None], 0.0)
            boxes = boxes + functional.pad(reference, (0, 2))
        return Predictions(logits, boxes.sigmoid(), self.activation)


def padded_to(images: Tensor, multiple: int) -> Tensor:
    """[B, 3, h, w], zeros added at the bottom and the right until both sides are multiples."""
    bottom, right = (-side % multiple for side in images.shape[-2:])
    return functional.pad(images, (0, right, 0, bottom)) if bottom or right else images


def padding_of_cells(pixels: Tensor, padded: int, cells: int) -> Tensor:
    """One side of every image: its own length in pixels [B], the batch's, and its cells -> is_padding [B, cells].

    Nearest-pixel downsampling of the padding mask, as published, with the interpolation's own rounding.
    """
    outside = torch.arange(padded, device=pixels.device) >= pixels[:, None]  # [B, padded]
    return functional.interpolate(outside[:, None].float(), size=cells)[:, 0] > 0
