"""Metrics of predictions. `panoptic_quality` is part of the Python API, imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fovea_detr.evaluation.quality import panoptic_quality

__all__ = ["panoptic_quality"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fovea_detr.evaluation' has no attribute '{name}'")
    from fovea_detr.evaluation.quality import panoptic_quality

    return panoptic_quality
