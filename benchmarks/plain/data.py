"""The published data pipeline, for comparison: PIL decodes, flips, resizes and crops; the worker converts to floats,
normalises, pads and adds a mask. The random draws are those of our plans, so that both sides do the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fovea_detr.data.transforms import Plan

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
DEVIATION = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def decode(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def flip(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def resize(image: Image.Image, size_hw: tuple[int, int]) -> Image.Image:
    height, width = size_hw
    return image.resize((width, height), Image.Resampling.BILINEAR)


def crop(image: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    return image.crop((left, top, left + width, top + height))


def flipped_boxes(boxes_xyxy: Tensor, width: int) -> Tensor:
    return boxes_xyxy[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([width, 0, width, 0])


def resized_boxes(boxes_xyxy: Tensor, before_hw: tuple[int, int], size_hw: tuple[int, int]) -> Tensor:
    height, width = (new / old for new, old in zip(size_hw, before_hw, strict=True))
    return boxes_xyxy * torch.tensor([width, height, width, height])


def cropped_boxes(boxes_xyxy: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """-> the remaining boxes, and [T] bool: which of the boxes remain."""
    assert plan.window is not None
    window = plan.window
    shifted = boxes_xyxy - torch.tensor([window.left, window.top, window.left, window.top])
    corners = torch.min(shifted.reshape(-1, 2, 2), torch.tensor([window.width, window.height])).clamp(min=0)
    keep = (corners[:, 1] > corners[:, 0]).all(dim=1)
    return corners.reshape(-1, 4)[keep], keep


def augment(
    image: Image.Image, boxes_xyxy: Tensor, labels: Tensor, plan: Plan
) -> tuple[Image.Image, dict[str, Tensor]]:
    """-> the image and its target: `labels` [T], `boxes` [T, 4] (cx, cy, w, h) as fractions of it."""
    if plan.flip:
        image, boxes_xyxy = flip(image), flipped_boxes(boxes_xyxy, image.width)
    if plan.crop_from_hw is not None and plan.window is not None:
        boxes_xyxy = resized_boxes(boxes_xyxy, (image.height, image.width), plan.crop_from_hw)
        image, window = resize(image, plan.crop_from_hw), plan.window
        image = crop(image, window.top, window.left, window.height, window.width)
        boxes_xyxy, keep = cropped_boxes(boxes_xyxy, plan)
        labels = labels[keep]
    boxes_xyxy = resized_boxes(boxes_xyxy, (image.height, image.width), plan.size_hw)
    height, width = plan.size_hw
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    boxes = torch.cat([(low + high) / 2, high - low], dim=1) / torch.tensor([width, height, width, height])
    return resize(image, plan.size_hw), {"labels": labels, "boxes": boxes}


def to_normalised(image: Image.Image) -> Tensor:
    """[3, h, w] float32."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    return (pixels - MEAN) / DEVIATION


def collate(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Normalised images -> [B, 3, h, w] padded with zeros, and is_padding [B, h, w]."""
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    padded = torch.zeros(len(images), 3, height, width)
    is_padding = torch.ones(len(images), height, width, dtype=torch.bool)
    for slot, mask, image in zip(padded, is_padding, images, strict=True):
        slot[:, : image.shape[1], : image.shape[2]].copy_(image)
        mask[: image.shape[1], : image.shape[2]] = False
    return padded, is_padding
