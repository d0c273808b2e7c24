"""The published mask head's numbers: a checkpoint with published names, loaded by a user's path, against stored values.

Weights, images and targets are drawn by rule, as in test_golden.py; masks are ellipses in the boxes.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fovea_detr
from fovea_detr.loss.criterion import Losses
from fovea_detr.model.detr import DETR
from fovea_detr.model.published import in_published_names
from fovea_detr.types import Batch, Predictions
from tests.model.test_golden import assert_near, published_state

FOLDER = Path(__file__).parent.parent / "golden" / "masks"
GOLDEN = sorted([*FOLDER.glob("segm_*.npz"), *FOLDER.glob("panoptic_*.npz")])
FLAGS = {"--enc_layers": "model.encoder_layers", "--dec_layers": "model.decoder_layers"}
FLAGS |= {
    "--dim_feedforward": "model.feedforward",
    "--num_queries": "model.num_queries",
    "--backbone": "model.backbone",
}
SWITCHES = {"--masks": "model.masks=true", "--dilation": "model.dc5=true"}


@dataclass
class Case:
    """One file, and what this project makes of it."""

    stored: dict[str, Any]
    model: DETR
    out: Predictions
    losses: Losses
    gradient_norms: dict[str, float]  # by published name

    def json(self, key: str) -> Any:
        return json.loads(str(self.stored[key]))


@pytest.fixture(scope="module", params=GOLDEN, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    stored = dict(np.load(request.param))
    argv = json.loads(str(stored["argv"]))
    config = fovea_detr.load_config(overrides(argv))
    model = fovea_detr.build_model(config).eval()
    state = published_state(json.loads(str(stored["params"])))
    checkpoint = tmp_path_factory.mktemp("published") / "checkpoint.pth"
    torch.save({"model": state}, checkpoint)
    report = fovea_detr.load_weights(model, checkpoint)
    checkpoint.unlink()
    assert (report.loaded, report.skipped, report.missing, report.notes) == (len(state), {}, [], [])
    out = model(images(stored))
    if "--no_aux_loss" in argv:
        out = dataclasses.replace(out, logits=out.logits[-1:], boxes_cxcywh=out.boxes_cxcywh[-1:])
    losses = fovea_detr.build_criterion(config)(out, targets(stored))
    losses.total.backward()
    norms = in_published_names(dict(model.named_parameters()))
    return Case(stored, model, out, losses, {k: p.grad.norm().item() for k, p in norms.items() if p.grad is not None})


def overrides(argv: list[str]) -> list[str]:
    """A published command line -> ours."""
    ours, arguments = ["model=detr_r50"], iter(argv)
    for flag in arguments:
        if flag in SWITCHES:
            ours.append(SWITCHES[flag])
        elif flag in FLAGS:
            ours.append(f"{FLAGS[flag]}={next(arguments)}")
        elif flag == "--dataset_file":
            assert next(arguments) == "coco_panoptic"
            ours.append("data.num_classes=250")
        elif flag == "--frozen_weights":
            assert next(arguments)
            ours.append("model.freeze_detector=true")
        else:
            assert flag == "--no_aux_loss"
    return ours


def images(stored: dict[str, Any]) -> Batch:
    sizes = [tuple(size) for size in stored["sizes"].tolist()]
    drawn = [
        np.random.default_rng(zlib.crc32(f"image{i}".encode())).standard_normal((3, *size))
        for i, size in enumerate(sizes)
    ]
    return fovea_detr.collate([torch.as_tensor(image, dtype=torch.float32) for image in drawn])


def targets(stored: dict[str, Any]) -> list[dict[str, Tensor]]:
    rng = np.random.default_rng(7)
    made: list[dict[str, Tensor]] = []
    for i, (height, width) in enumerate(stored["sizes"].tolist()):
        n = [3, 5, 0][i % 3]
        cxcy, wh = rng.uniform(0.2, 0.8, (n, 2)), rng.uniform(0.05, 0.35, (n, 2))
        labels = rng.integers(1, int(stored["label_top"]), n)
        x = ((np.arange(width) + 0.5) / width - cxcy[:, 0, None]) / (wh[:, 0, None] / 2)
        y = ((np.arange(height) + 0.5) / height - cxcy[:, 1, None]) / (wh[:, 1, None] / 2)
        masks = x[:, None, :] ** 2 + y[:, :, None] ** 2 <= 1
        boxes = torch.as_tensor(np.concatenate([cxcy, wh], axis=1), dtype=torch.float32)
        made.append({"boxes": boxes, "labels": torch.as_tensor(labels), "masks": torch.as_tensor(masks)})
    return made


def test_all_files_are_here() -> None:
    assert len(GOLDEN) == 4


def test_logits_boxes_and_masks(case: Case) -> None:
    assert_near(case.out.logits[-1], case.stored["pred_logits"], 1e-5)
    assert_near(case.out.boxes_cxcywh[-1], case.stored["pred_boxes"], 1e-6)
    assert case.out.masks is not None
    assert_near(case.out.masks, case.stored["pred_masks"], 5e-6)  # type: ignore[arg-type]


def test_maps_of_the_mask_attention(case: Case) -> None:
    seen: list[Any] = []
    assert case.model.bbox_attention is not None
    handle = case.model.bbox_attention.register_forward_hook(lambda _, __, maps: seen.append(maps))
    case.model(images(case.stored))
    handle.remove()
    assert_near(seen[0].unflatten(-1, case.stored["bbox_mask"].shape[-2:]), case.stored["bbox_mask"], 1e-6)


def test_losses(case: Case) -> None:
    stored = case.json("losses")
    for part in ("mask", "dice"):
        assert case.losses.by_layer[part].tolist() == pytest.approx([stored[f"loss_{part}"]], rel=1e-6)
    assert case.losses.total.item() == pytest.approx(float(case.stored["total_loss"]), rel=1e-6)


def test_matches(case: Case) -> None:
    for image, (queries, objects) in enumerate(case.losses.matches[-1]):
        assert queries.tolist() == case.stored[f"match{image}_pred"].tolist()
        assert objects.tolist() == case.stored[f"match{image}_target"].tolist()


def test_gradient_norms_and_what_is_trained(case: Case) -> None:
    """Norms below 1e-4 of the largest are rounding noise."""
    stored = case.json("grad_norms")
    trained = in_published_names(dict(case.model.named_parameters()))
    assert [name for name, p in trained.items() if p.requires_grad] == sorted(
        case.json("trainable"), key=[*trained].index
    )
    assert set(case.gradient_norms) == set(stored)
    noise = 1e-4 * max(stored.values())
    wrong = {
        name: (norm, stored[name])
        for name, norm in case.gradient_norms.items()
        if abs(norm - stored[name]) > max(2e-4 * stored[name], noise)
    }
    assert not wrong
