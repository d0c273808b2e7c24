"""The images of an evaluation and of the inference time, for an annotation file that does not list them by id."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.loader import Loader
from fovea_detr.data.readers import read_coco
from fovea_detr.data.transforms import eval_transform
from fovea_detr.training import split
from tests.data.builders import edit, write_coco
from tests.model.builders import small_config


def ids_of(_model: Any, batches: Iterable[Any], *_: Any, **_options: Any) -> list[tuple[int, ...]]:
    """In place of a pass of the model: the ids in each batch."""
    return [batch.image_ids for batch, _targets in batches]


def test_images_are_evaluated_and_timed_by_ascending_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path, [(40, 30)] * 5)
    edit(tmp_path, lambda content: content["images"].sort(key=lambda image: (3 * image["id"]) % 5), "val")
    dataset = CocoDataset(read_coco(tmp_path, "val"), eval_transform("tiny"))
    assert dataset.annotations.image_ids.tolist() == [5, 2, 4, 1, 3]
    config = small_config("evaluation.batch_size=2", "evaluation.timed_images=3")
    val = split.Split(dataset, Loader(dataset, seed=0, workers=0), config)
    monkeypatch.setattr(split, "detect", ids_of)
    monkeypatch.setattr(split, "inference_seconds", ids_of)
    model, cpu = nn.Identity(), torch.device("cpu")
    assert val.detect(model, cpu, lambda: None) == [(1, 2), (3, 4), (5,)]
    assert val.inference_time(model, cpu) == {"inference_seconds": [(1,), (2,), (3,)], "inference_images": 3}
