"""Builds the modules of a run from its configuration: the only place that knows both."""

from __future__ import annotations

from typing import Any

import torch
from hydra.utils import get_class
from torch import nn

from fovea_detr.config.checks import MASK_PARTS
from fovea_detr.config.schema import Config
from fovea_detr.data.annotations import CocoSplit
from fovea_detr.data.categories import COCO_CLASSES, Classes, merge_names
from fovea_detr.data.coco import CocoDataset, check_images
from fovea_detr.data.flaws import refuse
from fovea_detr.data.loader import Loader
from fovea_detr.data.readers import READERS, SplitName
from fovea_detr.data.transforms import eval_transform, published_sides, train_transform
from fovea_detr.errors import DataError
from fovea_detr.fovea.prior import FoveaPrior
from fovea_detr.loss.criterion import Criterion
from fovea_detr.loss.matcher import Matcher
from fovea_detr.model.backbone import build_backbone
from fovea_detr.model.detr import DETR
from fovea_detr.model.masks import MaskAttention, MaskHead
from fovea_detr.model.position import LearnedPosition, SinePosition
from fovea_detr.model.transformer import Decoder, DecoderLayer, Encoder, EncoderLayer, FeedForward
from fovea_detr.training.frozen import freeze, frozen_parts


def build_model(config: Config) -> DETR:
    """The model of a configuration with random weights; nothing is downloaded. Initialised from torch's generator."""
    model = config.model
    trained = "backbone" not in frozen_parts(config)
    backbone = build_backbone(model.backbone, dc5=model.dc5, batch_norm=model.batch_norm, train=trained)
    position = {"sine": SinePosition, "learned": LearnedPosition}[model.position](model.hidden)
    mixture = _axis(config.mixture) if model.fovea else None
    detr = DETR(
        backbone,
        build_encoder(config),
        build_decoder(config),
        position,
        hidden=model.hidden,
        num_queries=model.num_queries,
        class_outputs=class_outputs(config),
        has_reference=mixture.queries(model.num_queries) if mixture else None,
        activation="sigmoid" if model.loss == "focal" else "softmax",
    )
    detr.config = config
    if model.masks:  # after the rest, which is then initialised as without masks
        detr.bbox_attention = MaskAttention(model.hidden, model.heads)
        detr.mask_head = MaskHead(model.hidden, model.heads, backbone.channels)
        detr.mask_prior, detr.detector_is_frozen = model.mask_prior == "last", model.freeze_detector
    freeze(detr, config)
    return detr


def build_encoder(config: Config) -> Encoder:
    model = config.model
    layers = [
        EncoderLayer(model.hidden, model.heads, model.feedforward, model.dropout, model.pre_norm)
        for _ in range(model.encoder_layers)
    ]
    return Encoder(layers, nn.LayerNorm(model.hidden) if model.pre_norm else None)


def build_decoder(config: Config) -> Decoder:
    model = config.model
    layers = [
        DecoderLayer(
            model.hidden,
            model.heads,
            model.feedforward,
            model.dropout,
            model.pre_norm,
            build_prior(config, layer) if model.fovea else None,
        )
        for layer in range(model.decoder_layers)
    ]
    return Decoder(layers, model.hidden)


def build_prior(config: Config, layer: int) -> FoveaPrior:
    model = config.model
    mixture = _axis(config.mixture)
    return FoveaPrior(
        model.hidden,
        model.heads,
        _axis(config.dynamic_scale, hidden=model.hidden, heads=model.heads, kernel=_axis(config.kernel)),
        config.fovea.smooth,
        FeedForward(model.hidden, model.hidden, 2, num_layers=3) if layer == 0 else None,
        mixture.heads(model.heads),
        mixture.queries(model.num_queries),
        cell_centre=config.fovea.cell_centre,
    )


def build_criterion(config: Config) -> Criterion:
    """The loss of a configuration: `build_criterion(config)(predictions, targets)` -> Losses."""
    model = config.model
    costs, weights = model.match_costs, vars(model.loss_weights)
    return Criterion(
        Matcher(costs.classification, costs.l1, costs.giou, model.loss),
        {part: weight for part, weight in weights.items() if model.masks or part not in MASK_PARTS},
        loss=model.loss,
        class_outputs=class_outputs(config),
    )


def read_splits(config: Config) -> dict[SplitName, CocoSplit]:
    """The annotations of "train" (not with mode=eval) and "val", checked; with data.check=full the images too.

    With data.subset, those of the first images. Both have the classes of both splits and `data.num_classes`; with
    mode=eval, of the validation split alone.
    Raises DataError.
    """
    data = config.data
    if data.name not in READERS:
        raise DataError(f"data.name={data.name} has no reader: add it to READERS in fovea_detr/data/readers.py")
    names: tuple[SplitName, ...] = ("val", "train") if config.mode == "train" else ("val",)
    splits: dict[SplitName, CocoSplit] = {name: READERS[data.name](data, name) for name in names}
    refuse([split.flaws for split in splits.values()], data.max_flawed)
    if "train" in splits:
        classes = Classes.of(merge_names(splits["train"].categories, splits["val"].categories), data.num_classes)
        splits = {name: split.with_classes(classes) for name, split in splits.items()}
    if data.subset is not None:
        splits = {name: split.first(data.subset) for name, split in splits.items()}
    for split in splits.values() if data.check == "full" else ():
        check_images(CocoDataset(split, eval_transform(data.recipe)))
    return splits


def build_data(
    config: Config, splits: dict[SplitName, CocoSplit] | None = None
) -> tuple[CocoDataset | None, CocoDataset]:
    """The training (None with mode=eval) and the validation split. splits: None to read them. Raises DataError."""
    data, splits = config.data, read_splits(config) if splits is None else splits
    sizes: dict[str, Any] = {"max_side": data.max_side, "long_side": data.long_side}
    to_eval = eval_transform(data.recipe, short_side=data.short_side, **sizes)
    to_train = train_transform(data.recipe, **published_sides(data.short_side), **sizes)
    val = CocoDataset(splits["val"], to_eval, in_memory=data.in_memory)
    if "train" not in splits:
        return None, val
    return CocoDataset(splits["train"], to_train, in_memory=data.in_memory), val


def build_loader(config: Config, split: CocoDataset, device: torch.device) -> Loader:
    """The loader of a split for the whole run; its workers start with the first pass and end with `close`."""
    return Loader(split, seed=config.seed, workers=config.data.workers, pin_memory=device.type == "cuda")


def class_outputs(config: Config) -> int:
    """C: the classes and one more, as published (softmax: no object; sigmoid: an output that no object ever uses)."""
    return (config.data.num_classes or COCO_CLASSES) + 1


def _axis(node: dict[str, Any], **arguments: Any) -> Any:
    """An axis' value: the class named by `_target_`, with the node's other keys as arguments; `name` is a label."""
    options = {key: value for key, value in node.items() if key not in ("name", "_target_")}
    return get_class(node["_target_"])(**options, **arguments)
