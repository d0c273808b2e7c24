"""Logits, boxes and masks drawn by rule: the files post_*.npz in `golden/masks/` hold what DETR makes of them."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fovea_detr.types import Predictions

FOLDER = Path(__file__).parent.parent / "golden" / "masks"
STUFF = {0: 100, 2: 100, 4: 100, 1: 150, 3: 150}  # the class of a query, in the edited files


def stored(name: str) -> dict[str, Any]:
    return dict(np.load(FOLDER / f"{name}.npz"))


def from_json(stored: dict[str, Any], key: str) -> Any:
    return json.loads(str(stored[key]))


def drawn(tag: str, stored: dict[str, Any], classes: int, spread: float) -> list[np.ndarray]:
    """logits [B, Q, C + 1], boxes [B, Q, 4], masks [B, Q, h, w], float32."""
    rng = np.random.default_rng(zlib.crc32(tag.encode()))
    batch, queries, (h, w) = len(stored["sizes"]), int(stored["queries"]), stored["size4"].tolist()
    logits = spread * rng.standard_normal((batch, queries, classes + 1))
    boxes = np.concatenate(
        [rng.uniform(0.2, 0.8, (batch, queries, 2)), rng.uniform(0.05, 0.4, (batch, queries, 2))], -1
    )
    centre, size = rng.uniform(0, 1, (batch, queries, 2)), rng.uniform(0.05, 0.5, (batch, queries, 2))
    x, y = (np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h
    across, down = ((at - centre[..., i, None]) / size[..., i, None] for i, at in enumerate((x, y)))
    field = 4 - across[..., None, :] ** 2 - down[..., None] ** 2
    masks = np.maximum(field, -12) + rng.standard_normal((batch, queries, h, w))
    return [part.astype(np.float32) for part in (logits, boxes, masks)]


def predictions(tag: str, stored: dict[str, Any], classes: int) -> Predictions:
    logits, boxes, masks = drawn(tag, stored, classes, float(stored.get("spread", 6.0)))
    if classes == 250:
        edit(tag, logits, masks)
    return Predictions(torch.tensor(logits)[None], torch.tensor(boxes)[None], "softmax", torch.tensor(masks))


def edit(tag: str, logits: np.ndarray, masks: np.ndarray) -> None:
    logits[..., [0, 91, *range(201, 250)]] = -50
    classes = {
        "things_only": lambda q: 1 + q,
        **dict.fromkeys(("stuff_merge", "tiny_segments"), lambda q: STUFF.get(q, 10 + q)),
    }
    if tag in classes:
        logits[:] = 0
        for query in range(logits.shape[1]):
            logits[:, query, classes[tag](query)] = 12
    if tag == "tiny_segments":
        masks[:, 5] -= 40
        masks[:, 6] = -30
        masks[:, 6, 3, 4] = 60
        masks[:, 7] -= 40
