"""Parts of the model that a run does not train: neither their parameters nor their batch-norm statistics."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fovea_detr.config.schema import Config

# Of a model with masks, all but its mask attention and head.
DETECTOR = ("backbone", "position", "input_proj", "encoder", "decoder", "query_embed", "class_head", "box_head")


def frozen_parts(config: Config) -> list[str]:
    """The names of the modules: of `train.freeze`, and the backbone where `schedule.lr_backbone` is 0."""
    if config.model.freeze_detector:
        return list(DETECTOR)
    named = [part for part in config.train.freeze.split("+") if part != "none"]
    return sorted({*named, *(["backbone"] if config.schedule.lr_backbone == 0 else [])})


def freeze(model: nn.Module, config: Config) -> None:
    for part in frozen_parts(config):
        model.get_submodule(part).requires_grad_(False)


def train_mode(wrapped: nn.Module, model: nn.Module, config: Config) -> None:
    """`wrapped.train()`, but batch norms of frozen parts use their stored statistics and keep them."""
    wrapped.train()
    for part in frozen_parts(config):
        for module in model.get_submodule(part).modules():
            if isinstance(module, _BatchNorm):
                module.eval()
