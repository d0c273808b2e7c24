"""Detections against loops over queries, classes and images; whose turn it is; signs of life."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fovea_detr.compose import load_config
from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.loader import Loader
from fovea_detr.data.readers import read_coco
from fovea_detr.data.transforms import eval_transform
from fovea_detr.evaluation import detections
from fovea_detr.evaluation.coco import DetectionTable
from fovea_detr.evaluation.detections import detect, detection_rows, gather_detections, inference_seconds, postprocess
from fovea_detr.machine import distributed
from fovea_detr.runs import folder
from fovea_detr.runs.stop import StopFlag, Stopped
from fovea_detr.training.console import Console
from fovea_detr.training.loop import Trainer
from fovea_detr.training.split import Split
from fovea_detr.training.state import TrainState
from fovea_detr.types import Batch, Predictions
from tests import reference
from tests.data.builders import write_coco
from tests.model.builders import random_batch
from tests.predictions import CLASSES, random_predictions

SIZES_HW = torch.tensor([[480, 640], [333, 500]])
CPU = torch.device("cpu")

# ---- detections ------------------------------------------------------------------------------------------------------

Best = tuple[float, int, list[float]]  # score, label, box


def scaled_box(box_cxcywh: Tensor, size_hw: Tensor) -> list[float]:
    left, top, right, bottom = reference.corners(box_cxcywh.detach()).tolist()
    height, width = size_hw.tolist()
    return [left * width, top * height, right * width, bottom * height]


def by_loop(predictions: Predictions, image: int) -> list[Best]:
    """sigmoid: the Q best of all (query, class) pairs; softmax: each query's best class but the last. Best first."""
    logits, boxes = predictions.logits[-1, image].detach(), predictions.boxes_cxcywh[-1, image]
    found: list[Best] = []
    for query in range(len(logits)):
        box = scaled_box(boxes[query], SIZES_HW[image])
        if predictions.activation == "sigmoid":
            found += [(torch.sigmoid(logits[query, c]).item(), c, box) for c in range(CLASSES)]
        else:
            scores = torch.softmax(logits[query], dim=0).tolist()[:-1]
            found.append((max(scores), scores.index(max(scores)), box))
    return sorted(found, key=lambda one: -one[0])[: len(logits)]


@pytest.mark.parametrize("num_queries", [1, 6])
@pytest.mark.parametrize("loss", ["focal", "softmax"])
def test_detections_by_loop(loss: str, num_queries: int) -> None:
    predictions = random_predictions(2, 2, num_queries, loss=loss)
    detections = postprocess(predictions, SIZES_HW)
    assert len(detections) == 2
    for image, found in enumerate(detections):
        expected = by_loop(predictions, image)
        assert found.scores.tolist() == pytest.approx([score for score, _, _ in expected], rel=1e-6)
        assert found.labels.tolist() == [label for _, label, _ in expected]
        assert np.allclose(found.boxes_xyxy.detach().numpy(), [box for _, _, box in expected], rtol=1e-5, atol=1e-4)


def test_one_query_can_be_found_as_two_classes() -> None:
    predictions = random_predictions(1, 2, 3)
    with torch.no_grad():
        predictions.logits.fill_(-9.0)
        predictions.logits[0, :, 1, :3] = torch.tensor([3.0, 2.0, 1.0])
    for image, found in enumerate(postprocess(predictions, SIZES_HW)):
        assert found.labels.tolist() == [0, 1, 2]
        expected = scaled_box(predictions.boxes_cxcywh[0, image, 1], SIZES_HW[image])
        assert all(box == pytest.approx(expected, rel=1e-5) for box in found.boxes_xyxy.tolist())


def test_a_softmax_query_of_no_object_is_found_with_its_second_best_class() -> None:
    predictions = random_predictions(1, 2, 1, loss="softmax")
    with torch.no_grad():
        predictions.logits[:] = torch.tensor([0.0, 1.0, 0.0, 9.0])
    for found in postprocess(predictions, SIZES_HW):
        assert found.labels.tolist() == [1]
        assert found.scores.item() < 0.01


class Fixed(nn.Module):
    """A model that predicts the same for every image, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.one = random_predictions(1, 1, 4)

    def forward(self, batch: Batch) -> Predictions:
        self.calls += 1
        logits, boxes = (x.expand(1, len(batch), 4, 4) for x in (self.one.logits, self.one.boxes_cxcywh))
        return Predictions(logits, boxes)


def batches_of(*image_ids: tuple[int, ...]) -> list[tuple[Batch, None]]:
    made = []
    for ids in image_ids:
        batch = random_batch(*[(8, 8)] * len(ids))
        batch.original_sizes_hw = torch.tensor([[10 * i, 20 * i] for i in ids])
        batch.image_ids = ids
        made.append((batch, None))
    return made


def results_by_loop(model: nn.Module, batches: list[tuple[Batch, None]]) -> list[dict[str, Any]]:
    """Image by image, number by number."""
    results = []
    for batch, _ in batches:
        for image_id, found in zip(batch.image_ids, postprocess(model(batch), batch.original_sizes_hw), strict=True):
            for score, label, (left, top, right, bottom) in zip(*vars(found).values(), strict=True):
                box = [side.item() for side in (left, top, right - left, bottom - top)]
                one = {"image_id": image_id, "category_id": label.item(), "bbox": box, "score": score.item()}
                results.append(one)
    return results


def test_detect_is_a_loop_over_images() -> None:
    """Every number exactly: neither float32 boxes nor image ids beyond float64 lose a bit."""
    ids = ((3, 581_929), (2**53 + 1,))
    batches = batches_of(*ids)
    for batch, _ in batches:
        batch.original_sizes_hw = torch.tensor([[427, 640], [501, 333]])[: len(batch)]
    found = detect(Fixed(), batches, CPU, "fp32")
    assert len(found) == 3 * 4
    assert found.results() == results_by_loop(Fixed(), batches)
    assert detect(Fixed(), [], CPU, "fp32").results() == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_detect_names_images_and_scales_to_their_size_on_disk(precision: str) -> None:
    model, before = Fixed().train(), []
    found = detect(model, batches_of((3, 1), (2,)), CPU, precision, before_each=lambda: before.append(1))
    assert not model.training
    assert len(before) == 2
    assert found.image_ids.tolist() == [3] * 4 + [1] * 4 + [2] * 4
    small, large = found.rows[4, :4], found.rows[0, :4]
    assert large.tolist() == pytest.approx((3 * small).tolist(), rel=1e-6)


@pytest.mark.parametrize("loss", ["focal", "softmax"])
def test_detecting_copies_nothing_back_from_the_device(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which has no values to read: whatever asks for one raises."""
    meta = torch.device("meta")
    model = Fixed()
    model.one = random_predictions(1, 1, 4, loss=loss)
    model.one.logits, model.one.boxes_cxcywh = model.one.logits.to(meta), model.one.boxes_cxcywh.to(meta)
    monkeypatch.setattr(detections, "autocast", lambda *_: contextlib.nullcontext())
    found = detect(model, batches_of((3, 1), (2,)), meta, "fp32")
    assert (found.image_ids.device, found.rows.device) == (meta, meta)
    assert found.rows.shape == (12, 6)


def test_half_precision_keeps_category_ids() -> None:
    """bfloat16 has no 257."""
    logits = torch.full((1, 1, 1, 400), -9.0, dtype=torch.bfloat16)
    logits[..., 257] = 1
    rows = detection_rows(Predictions(logits, torch.full((1, 1, 1, 4), 0.5, dtype=torch.bfloat16)), SIZES_HW[:1])
    assert rows[0, 0, 5] == 257


def test_what_the_callback_raises_ends_the_evaluation() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    model = Fixed()
    with pytest.raises(KeyboardInterrupt):
        detect(model, batches_of((1,)), CPU, "fp32", before_each=stop)
    assert model.calls == 0


def test_inference_time_is_per_image_after_a_warmup() -> None:
    model = Fixed()
    assert inference_seconds(model, batches_of((1,), (2,), (3,)), CPU, "fp32") > 0
    assert model.calls == 3 + 3
    assert inference_seconds(model, [], CPU, "fp32") == 0


# ---- all ranks -------------------------------------------------------------------------------------------------------


def test_gathered_detections_have_the_order_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images dealt out to two ranks; inside an image the order stays: best first."""

    def made(*image_ids: int) -> DetectionTable:
        ids = torch.tensor(image_ids, dtype=torch.int64).repeat_interleave(3)
        scores = torch.tensor([0.9, 0.9, 0.1], dtype=torch.float64).repeat(len(image_ids))
        number = torch.arange(3.0, dtype=torch.float64).repeat(len(image_ids))
        return DetectionTable(ids, torch.stack([ids.double(), number, scores, scores, scores, number], dim=1))

    parts, alone = (made(8, 1), made(2, 5), made()), made(1, 2, 5, 8)
    with monkeypatch.context() as patch:
        patch.setattr(
            distributed,
            "gather_rows",
            lambda rows: torch.cat([part.rows if rows.dim() == 2 else part.image_ids for part in parts]),
        )
        together = gather_detections(parts[0])
    for gathered in (together, gather_detections(made(5, 8, 1, 2))):
        assert torch.equal(gathered.image_ids, alone.image_ids)
        assert torch.equal(gathered.rows, alone.rows)


# ---- in a run --------------------------------------------------------------------------------------------------------


class Watching(Fixed):
    """Records state.json at each batch."""

    def __init__(self, run_folder: folder.RunFolder) -> None:
        super().__init__()
        self.folder = run_folder
        self.states: list[dict[str, Any] | None] = []

    def forward(self, batch: Batch) -> Predictions:
        self.states.append(self.folder.state())
        return super().forward(batch)


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    """A run that is about to evaluate 5 images one at a time, after epoch 2 of 3."""
    config = load_config(["experiment=tiny", "evaluation.batch_size=1", "data.workers=0"])
    run_folder = folder.RunFolder(tmp_path / "run")
    model: Any = Watching(run_folder)
    state = TrainState(model, None, epoch=2, batches_done=7)  # type: ignore[arg-type]
    root = write_coco(tmp_path / "data", images=[(48, 32)] * 5, splits=("val",))
    dataset = CocoDataset(read_coco(root, "val"), eval_transform("tiny"))
    split = Split(dataset, Loader(dataset, seed=0, workers=0), config)
    console = Console(run_folder, "base", 3, enabled=False)
    return Trainer(config, run_folder, CPU, state, None, console, StopFlag(), val=split)  # type: ignore[arg-type]


def test_every_batch_of_an_evaluation_writes_a_heartbeat(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "HEARTBEAT_SECONDS", 0.0)
    metrics, timing = trainer.evaluate()
    states: Any = trainer.state.model.states
    assert [(state["state"], state["epoch"], state["batches_done"]) for state in states] == [("running", 2, 7)] * 5
    assert len({state["time"] for state in states}) == 5
    assert "AP" in metrics
    assert timing["evaluation_seconds"] > 0


def test_heartbeats_are_at_least_half_a_minute_apart(trainer: Trainer) -> None:
    trainer.evaluate()
    states: Any = trainer.state.model.states
    assert len({state["time"] for state in states}) == 1


def test_a_signal_ends_an_evaluation_at_the_next_batch(trainer: Trainer) -> None:
    trainer.stop.number = 12
    with pytest.raises(Stopped):
        trainer.evaluate()
    assert trainer.state.model.states == []


def test_the_ground_truth_is_read_once_a_run(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trainer.val is not None
    first, _ = trainer.evaluate()
    monkeypatch.setattr(type(trainer.val.dataset.annotations), "ground_truth", lambda _: pytest.fail("read again"))
    assert trainer.evaluate()[0] == first


def test_the_backend_is_that_of_the_configuration(trainer: Trainer) -> None:
    assert trainer.val is not None
    assert trainer.val.ground_truth.backend == "hotcoco"
    config = replace(trainer.config, evaluation=replace(trainer.config.evaluation, backend="pycocotools"))
    assert replace(trainer.val, config=config).ground_truth.backend == "pycocotools"
