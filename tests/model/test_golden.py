"""The published implementations' numbers: weights, images and targets are drawn by rule, the outputs are stored.

The files in `golden/` hold what DETR and the single-scale SMCA code with its scales and mixtures computed (float32,
CPU, no dropout). A file's model is built, loaded and run here through the public API alone, as a user with a downloaded
checkpoint would do it; only gradients go by the published names.
"""

from __future__ import annotations

import argparse
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
from fovea_detr.model.published import published_name
from fovea_detr.types import Batch, Detections, Predictions

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("*.npz"))
SIZES_HW = [(96, 128), (80, 112)]
PARTS = {"classification": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}


@dataclass
class Case:
    """One file, and what this project makes of it."""

    stored: dict[str, Any]
    predictions: Predictions
    losses: Losses
    detections: list[Detections]
    gradient_norms: dict[str, float]  # by published name

    def json(self, key: str) -> dict[str, Any]:
        return json.loads(str(self.stored[key]))


@pytest.fixture(scope="module", params=GOLDEN, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    stored = dict(np.load(request.param))
    config = fovea_detr.load_config(overrides(request.param.stem, json.loads(str(stored["argv"]))))
    model = fovea_detr.build_model(config).eval()
    checkpoint = tmp_path_factory.mktemp("published") / "checkpoint.pth"
    state = published_state(json.loads(str(stored["params"])))
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-4, dataset_file="coco"), "epoch": 49}, checkpoint)
    report = fovea_detr.load_weights(model, checkpoint)
    checkpoint.unlink()
    assert report.loaded == len(state)
    assert not report.skipped
    assert not report.missing
    predictions = model(images())
    losses = fovea_detr.build_criterion(config)(predictions, targets())
    losses.total.backward()
    norms = {published_name(name): p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    detections = fovea_detr.postprocess(predictions, images().original_sizes_hw)
    return Case(stored, predictions, losses, detections, norms)


def overrides(name: str, argv: list[str]) -> list[str]:
    """A published command line, and the sizes that all files share -> this project's."""
    ours = ["model.encoder_layers=1", "model.feedforward=64"]
    ours += ["model=detr_r50", "model.decoder_layers=2"] if name.startswith("detr") else []
    arguments = iter(argv)
    for flag in arguments:
        if flag in ("--head_mixture", "--query_mixture"):
            ours.append(f"mixture={flag.removeprefix('--').removesuffix('_mixture')}")
        else:
            key = {"--num_queries": "model.num_queries"}.get(flag, flag.removeprefix("--"))
            ours.append(f"{key}={next(arguments)}")
    return ours


def published_state(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(weight(name, shape), dtype=torch.float32) for name, shape in shapes.items()}


def weight(name: str, shape: list[int]) -> np.ndarray:
    r = np.asarray(np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape))
    if name.endswith("running_var"):
        return 0.5 + np.abs(r)
    if name.endswith("running_mean"):
        return 0.1 * r
    if len(shape) < 2:
        return 0.1 * r if name.endswith("bias") else 1 + 0.1 * r
    return r / np.sqrt(np.prod(shape[1:]))


def images() -> Batch:
    drawn = [
        np.random.default_rng(zlib.crc32(f"image{i}".encode())).standard_normal((3, *size))
        for i, size in enumerate(SIZES_HW)
    ]
    originals = [(2 * height, 2 * width) for height, width in SIZES_HW]
    return fovea_detr.collate([torch.as_tensor(image, dtype=torch.float32) for image in drawn], originals)


def targets() -> list[dict[str, Tensor]]:
    """As DETR's data sets return them."""
    rng = np.random.default_rng(7)
    made = []
    for i in range(len(SIZES_HW)):
        n = [3, 5, 0][i % 3]
        cxcy, wh, labels = rng.uniform(0.2, 0.8, (n, 2)), rng.uniform(0.05, 0.35, (n, 2)), rng.integers(1, 91, n)
        boxes = torch.as_tensor(np.concatenate([cxcy, wh], axis=1), dtype=torch.float32)
        made.append({"boxes": boxes, "labels": torch.as_tensor(labels)})
    return made


def assert_near(ours: Tensor, stored: np.ndarray, tolerance: float) -> None:
    assert ours.shape == stored.shape
    assert np.abs(ours.detach().numpy() - stored).max() <= tolerance


def test_all_files_are_here() -> None:
    assert len(GOLDEN) == 9


def test_logits_and_boxes(case: Case) -> None:
    assert_near(case.predictions.logits[-1], case.stored["pred_logits"], 1e-4)
    assert_near(case.predictions.boxes_cxcywh[-1], case.stored["pred_boxes"], 1e-4)
    early_layers = [key for key in case.stored if key.startswith("aux")]
    assert len(early_layers) == len(case.predictions.logits) - 1
    for layer in range(len(early_layers)):
        assert_near(case.predictions.boxes_cxcywh[layer], case.stored[f"aux{layer}_boxes"], 1e-4)


def test_matches(case: Case) -> None:
    for image, (queries, objects) in enumerate(case.losses.matches[-1]):
        assert queries.tolist() == case.stored[f"match{image}_pred"].tolist()
        assert objects.tolist() == case.stored[f"match{image}_target"].tolist()


def test_losses_of_every_layer(case: Case) -> None:
    stored, num_layers = case.json("losses"), len(case.predictions.logits)
    for part, theirs in PARTS.items():
        suffixes = [f"_{layer}" for layer in range(num_layers - 1)] + [""]
        expected = [stored[theirs + suffix] for suffix in suffixes]
        assert case.losses.by_layer[part].tolist() == pytest.approx(expected, rel=1e-3, abs=0)
    assert case.losses.total.item() == pytest.approx(float(case.stored["total_loss"]), rel=1e-3)


def test_gradient_norms(case: Case) -> None:
    """The floor is for layer 0's self-attention, whose weights see a content of zero: noise around no gradient."""
    stored = case.json("grad_norms")
    assert set(case.gradient_norms) == set(stored)
    wrong = {
        name: (norm, stored[name]) for name, norm in case.gradient_norms.items() if not is_close(norm, stored[name])
    }
    assert not wrong


def is_close(norm: float, stored: float) -> bool:
    return abs(norm - stored) <= 1e-3 * abs(stored) + 1e-6


def test_detections(case: Case) -> None:
    """Neighbours in the order may differ by less than float32 noise, so detections are looked up by label and box."""
    for image, found in enumerate(case.detections):
        scores, labels, boxes = (case.stored[f"result{image}_{what}"] for what in ("scores", "labels", "boxes"))
        assert (found.scores.diff() <= 0).all()
        assert_near(found.scores, np.sort(scores)[::-1], 1e-4)
        same_label = found.labels.numpy()[:, None] == labels
        same_box = np.abs(found.boxes_xyxy.detach().numpy()[:, None] - boxes).max(-1) <= 1e-2
        same_score = np.abs(found.scores.detach().numpy()[:, None] - scores) <= 1e-4
        same = same_label & same_box & same_score
        assert same.any(0).all()
        assert same.any(1).all()
