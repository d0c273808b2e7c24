"""Small models of any kind, through the same configuration and wiring as real ones."""

from __future__ import annotations

import torch
from torch import Tensor

from fovea_detr.build import build_model
from fovea_detr.compose import load_config
from fovea_detr.config.schema import Config
from fovea_detr.data.loader import collate_images
from fovea_detr.model.detr import DETR
from fovea_detr.types import Batch

SMALL = [
    "model=fovea_tiny",
    "model.batch_norm=frozen",
    "model.hidden=16",
    "model.heads=2",
    "model.feedforward=16",
    "model.num_queries=7",
    "data.num_classes=5",
]


def small_config(*overrides: str) -> Config:
    return load_config([*SMALL, *overrides])


def small_model(*overrides: str, seed: int = 0) -> DETR:
    torch.manual_seed(seed)
    return build_model(small_config(*overrides)).eval()


def random_image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))


def random_batch(*sizes_hw: tuple[int, int]) -> Batch:
    return collate_images([random_image(*size, seed=i) for i, size in enumerate(sizes_hw)])
