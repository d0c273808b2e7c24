"""DETR with a Gaussian fovea prior on its cross-attention. The names in `__all__` are the Python API; see the README.

They are imported on first use, so that reading run folders (`fovea_detr.runs.folder`) never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fovea_detr.build import build_criterion, build_model
    from fovea_detr.compose import load_config
    from fovea_detr.data.loader import collate_images as collate
    from fovea_detr.evaluation.detections import postprocess
    from fovea_detr.evaluation.panoptic import panoptic
    from fovea_detr.predict.predictor import load_run
    from fovea_detr.training.checkpoint import load_weights

__version__ = "0.2.0.dev0"

_HOMES = {
    "build_criterion": ("fovea_detr.build", "build_criterion"),
    "build_model": ("fovea_detr.build", "build_model"),
    "collate": ("fovea_detr.data.loader", "collate_images"),
    "load_config": ("fovea_detr.compose", "load_config"),
    "load_run": ("fovea_detr.predict.predictor", "load_run"),
    "load_weights": ("fovea_detr.training.checkpoint", "load_weights"),
    "panoptic": ("fovea_detr.evaluation.panoptic", "panoptic"),
    "postprocess": ("fovea_detr.evaluation.detections", "postprocess"),
}

__all__ = ["build_criterion", "build_model", "collate", "load_config", "load_run", "load_weights"]
__all__ += ["panoptic", "postprocess"]


def __getattr__(name: str) -> Any:
    if name == "evaluation":  # `fovea_detr.evaluation.panoptic_quality` after this import alone
        return import_module("fovea_detr.evaluation")
    if name not in _HOMES:
        raise AttributeError(f"module 'fovea_detr' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
