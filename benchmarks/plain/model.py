"""The whole model as published by DETR and SMCA, with our parameter names, so that it can load our weights.

Post-norm and sine positions, as in every published run. Attention without a prior is torch's module. The backbone's
frozen batch norms are not folded; a mask of every pixel accompanies the images.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.plain.attention import SCALES_PER_HEAD, PlainCrossAttention, PlainPrior, cells_xy
from benchmarks.plain.layers import MLP, sine_position
from fovea_detr.config.backbones import BACKBONES
from fovea_detr.config.schema import AXES, Config
from fovea_detr.errors import ConfigError
from fovea_detr.runs.settings import defaults, settings

# The values that the plain model has a formula for, by the key of the command line.
VALUES = {
    "model.position": ("sine",),
    "model.pre_norm": ("false",),
    "model.backbone": tuple(name for name, spec in BACKBONES.items() if spec.body in ("resnet", "tiny")),
}
FOVEA_VALUES = {
    "dynamic_scale": tuple(SCALES_PER_HEAD),
    "mixture": ("none", "head", "query", "head_query"),
    "kernel": ("gaussian",),
    "fovea.cell_centre": ("false",),
}

Outputs = dict[str, "Tensor | list[dict[str, Tensor]]"]


class PlainEncoderLayer(nn.Module):
    def __init__(self, hidden: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(hidden, heads, dropout=dropout, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(hidden, feedforward), nn.Linear(feedforward, hidden)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, cells: Tensor, position: Tensor, is_padding: Tensor) -> Tensor:
        """cells, position [B, K, D]; is_padding [B, K] -> [B, K, D]."""
        place = cells + position
        found = self.self_attention(place, place, value=cells, key_padding_mask=is_padding)[0]
        cells = self.norm1(cells + self.dropout(found))
        found = self.linear2(self.dropout(functional.relu(self.linear1(cells))))
        return self.norm2(cells + self.dropout(found))


class PlainDecoderLayer(nn.Module):
    def __init__(self, hidden: int, heads: int, feedforward: int, dropout: float, prior: PlainPrior | None) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(hidden, heads, dropout=dropout, batch_first=True)
        self.cross_attention: nn.Module = (
            nn.MultiheadAttention(hidden, heads, dropout=dropout, batch_first=True)
            if prior is None
            else PlainCrossAttention(hidden, heads, dropout)
        )
        self.linear1, self.linear2 = nn.Linear(hidden, feedforward), nn.Linear(feedforward, hidden)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(hidden), nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)
        self.prior = prior

    def forward(
        self, content: Tensor, embed: Tensor, memory: Tensor, position: Tensor, is_padding: Tensor, prior: Tensor | None
    ) -> Tensor:
        """content, embed [B, Q, D]; memory, position [B, K, D]; is_padding [B, K]; prior [Q, K, B * H] -> [B, Q, D]."""
        place = content + embed
        found = self.self_attention(place, place, value=content)[0]
        content = self.norm1(content + self.dropout(found))
        query, key = content + embed, memory + position
        if prior is None:
            found = self.cross_attention(query, key, value=memory, key_padding_mask=is_padding)[0]
        else:
            found = self.cross_attention(query, key, memory, prior, is_padding)
        content = self.norm2(content + self.dropout(found))
        found = self.linear2(self.dropout(functional.relu(self.linear1(content))))
        return self.norm3(content + self.dropout(found))


class PlainStack(nn.Module):
    """Layers, and the norm that the decoder applies to each layer's output."""

    def __init__(self, layers: list[nn.Module], norm: nn.Module | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm if norm is not None else nn.Identity()


class PlainDETR(nn.Module):
    """stride: of the backbone, in pixels. queries_with_prior [Q]: their boxes use the reference point; None: all."""

    queries_with_prior: Tensor | None

    def __init__(self, config: Config, body: nn.Module, channels: int, stride: int, class_outputs: int) -> None:
        super().__init__()
        model = config.model
        self.hidden, self.stride = model.hidden, stride
        self.backbone = nn.ModuleDict({"body": body})
        self.input_proj = nn.Conv2d(channels, model.hidden, kernel_size=1)
        sizes = (model.hidden, model.heads, model.feedforward, model.dropout)
        self.encoder = PlainStack([PlainEncoderLayer(*sizes) for _ in range(model.encoder_layers)], None)
        priors = [plain_prior(config, i == 0) if model.fovea else None for i in range(model.decoder_layers)]
        self.decoder = PlainStack([PlainDecoderLayer(*sizes, p) for p in priors], nn.LayerNorm(model.hidden))
        self.query_embed = nn.Embedding(model.num_queries, model.hidden)
        self.class_head = nn.Linear(model.hidden, class_outputs)
        self.box_head = MLP(model.hidden, model.hidden, 4)
        queries = uses_prior(config)
        self.register_buffer("queries_with_prior", None if queries is None else queries.any(1), persistent=False)

    def forward(self, images: Tensor, is_padding: Tensor) -> Outputs:
        """images [B, 3, h, w], padding [B, h, w] -> DETR's dict, with `aux_outputs` for all layers but the last."""
        features = self.backbone["body"](images)
        features = features["0"] if isinstance(features, dict) else features
        rows, columns = features.shape[-2:]
        of_cells = functional.interpolate(is_padding[None].float(), size=(rows, columns)).to(torch.bool)[0]
        position = sine_position(of_cells, self.hidden).flatten(2).transpose(1, 2)
        memory = self.input_proj(features).flatten(2).transpose(1, 2)
        hidden = of_cells.flatten(1)
        for layer in self.encoder.layers:
            memory = layer(memory, position, hidden)
        extent = torch.stack(((~is_padding[:, 0]).sum(1), (~is_padding[:, :, 0]).sum(1)), dim=-1).float() / self.stride
        stacked, reference = self.decode(memory, position, hidden, extent, (rows, columns))
        return self.heads(stacked, reference)

    def decode(
        self, memory: Tensor, position: Tensor, is_padding: Tensor, extent_cells: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """memory, position [B, K, D]; extent_cells [B, 2] as (w, h); grid: rows, columns -> [L, B, Q, D], reference."""
        embed = self.query_embed.weight[None].repeat(len(memory), 1, 1)
        content, reference, outputs = torch.zeros_like(embed), None, []
        cells = cells_xy(*grid, memory.device)
        for layer in self.decoder.layers:
            assert isinstance(layer, PlainDecoderLayer)
            prior = None
            if layer.prior is not None:
                prior, reference = layer.prior(content, embed, reference, extent_cells[:, None], cells)
            content = layer(content, embed, memory, position, is_padding, prior)
            outputs.append(self.decoder.norm(content))
        return torch.stack(outputs), reference

    def heads(self, stacked: Tensor, reference: Tensor | None) -> Outputs:
        logits, boxes = self.class_head(stacked), self.box_head(stacked)
        if reference is not None:
            if self.queries_with_prior is not None:
                reference = reference.masked_fill(~self.queries_with_prior[:, None], 0.0)
            boxes = torch.cat((boxes[..., :2] + reference, boxes[..., 2:]), dim=-1)
        boxes = boxes.sigmoid()
        aux = [{"pred_logits": a, "pred_boxes": b} for a, b in zip(logits[:-1], boxes[:-1], strict=True)]
        return {"pred_logits": logits[-1], "pred_boxes": boxes[-1], "aux_outputs": aux}


def uses_prior(config: Config) -> Tensor | None:
    """[Q, H] bool, the queries and heads with a prior; None: all."""
    name, heads, queries = config.mixture["name"], config.model.heads, config.model.num_queries
    if name == "none" or not config.model.fovea:
        return None
    table = torch.ones(queries, heads, dtype=torch.bool)
    if name in ("head", "head_query"):
        table[:, heads - heads // 2 :] = False
    if name in ("query", "head_query"):
        table[: queries // 2] = False
    return table


def plain_prior(config: Config, first: bool) -> PlainPrior:
    model = config.model
    return PlainPrior(
        config.dynamic_scale["name"], model.hidden, model.heads, config.fovea.smooth, first, uses_prior(config)
    )


class PlainTinyBody(nn.Sequential):
    """The network of `model.backbone=tiny`, this project's own, built of torchvision's blocks."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.add_module("conv1", nn.Conv2d(3, 16, kernel_size=4, stride=4, bias=False))
        self.add_module("bn1", norm(16))
        self.add_module("relu", nn.ReLU())
        blocks, before = [], 16
        for width, stride in ((16, 1), (32, 2), (64, 2), (128, 1)):
            shortcut = None
            if before != width:
                shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), norm(width))
            blocks.append(BasicBlock(before, width, stride, shortcut, norm_layer=norm))
            before = width
        self.add_module("blocks", nn.Sequential(*blocks))


def plain_body(config: Config) -> tuple[nn.Module, int, int]:
    """-> the backbone's body, its channels and its stride."""
    norm = FrozenBatchNorm2d if config.model.batch_norm == "frozen" else nn.BatchNorm2d
    name = config.model.backbone
    if name == "tiny":
        return PlainTinyBody(norm), 128, 16
    dilation = {"replace_stride_with_dilation": [False, False, config.model.dc5]}
    resnet = torchvision.models.get_model(name, weights=None, norm_layer=norm, **dilation)
    channels = 512 if name in ("resnet18", "resnet34") else 2048
    return IntermediateLayerGetter(resnet, {"layer4": "0"}), channels, 16 if config.model.dc5 else 32


def check_published(config: Config) -> None:
    """Raise ConfigError for a value that only our own model computes, of a key that it does not know, too."""
    found, known = settings(config), {*VALUES, *FOVEA_VALUES, "fovea.smooth"}
    for key in found.keys() - known:
        if config.model.fovea and key.split(".")[0] in ("fovea", *AXES) and found[key] != defaults()[key]:
            raise ConfigError(f"{key}={found[key]} has no plain twin in benchmarks/plain: leave it out")
    for key, values in (VALUES | (FOVEA_VALUES if config.model.fovea else {})).items():
        if found[key] not in values:
            raise ConfigError(f"{key}={found[key]} has no plain twin in benchmarks/plain: choose {', '.join(values)}")


def plain_twin(config: Config, ours: nn.Module) -> PlainDETR:
    """The plain model of a configuration, with our weights and the same trainable parameters. Raises ConfigError."""
    check_published(config)
    class_outputs = ours.get_parameter("class_head.weight").shape[0]
    plain = PlainDETR(config, *plain_body(config), class_outputs)
    plain.load_state_dict(ours.state_dict())
    trainable = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name in trainable)
    return plain
