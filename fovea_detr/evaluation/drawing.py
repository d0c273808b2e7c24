"""Boxes, names, scores and masks drawn on a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#000075")  # white text reads
MASK_SHARE = 0.5  # of a mask's colour in its pixels


class Mark(NamedTuple):
    """A box in pixels (left, top, right, bottom), its text, and the number of its colour."""

    box_xyxy: Sequence[float]
    text: str
    colour: int = 0


def blended(pixels: Tensor, masks: Tensor, colours: Sequence[int]) -> Tensor:
    """pixels [3, h, w] uint8, masks [N, h, w] bool, the number of each's colour -> pixels, the first mask on top."""
    found = pixels.clone()
    for mask, colour in reversed(list(zip(masks, colours, strict=True))):
        tone = torch.tensor(ImageColor.getrgb(COLOURS[colour % len(COLOURS)]))[:, None]
        found[:, mask] = ((1 - MASK_SHARE) * pixels[:, mask] + MASK_SHARE * tone).to(torch.uint8)
    return found


def draw_boxes(pixels: Tensor, marks: Sequence[Mark]) -> Image.Image:
    """pixels [3, h, w] uint8 -> the picture with the boxes, the last one below all others. Lines grow with it."""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    scale = max(image.size)
    width, font = max(1, round(scale / 400)), ImageFont.load_default(max(10, round(scale / 45)))
    canvas = ImageDraw.Draw(image)
    for mark in reversed(marks):
        colour = COLOURS[mark.colour % len(COLOURS)]
        left, top, right, bottom = mark.box_xyxy
        canvas.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=width)
        _label(canvas, mark.text, (left, top), image.size, font, colour)
    return image


def _label(
    canvas: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    size_wh: tuple[int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    colour: str,
) -> None:
    """The text on a filled ground above the corner, moved so that it stays inside the picture."""
    _, _, right, bottom = canvas.textbbox((0, 0), text, font=font)
    x = min(max(corner[0], 0), max(0, size_wh[0] - right))
    y = corner[1] - bottom if corner[1] >= bottom else corner[1]
    canvas.rectangle((x, y, x + right, y + bottom), fill=colour)
    canvas.text((x, y), text, fill="white", font=font)
