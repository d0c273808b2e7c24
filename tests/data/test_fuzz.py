"""Mutated annotation files: read consistently by training and evaluation, or refused in one line.

FOVEA_FUZZ=2000 python -m pytest tests/data/test_fuzz.py runs that many mutations.
"""

from __future__ import annotations

import copy
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.flaws import refuse
from fovea_detr.data.readers import read_coco
from fovea_detr.data.transforms import eval_transform, train_transform
from fovea_detr.data.worst import worst_batch
from fovea_detr.errors import DataError
from fovea_detr.evaluation.coco import BACKENDS, DetectionTable, GroundTruth, coco_metrics
from fovea_detr.runs.folder import METRICS
from tests.data.builders import annotation_path, box, write_coco
from tests.data.test_cases import assert_consistent

COUNT, CHUNK = int(os.environ.get("FOVEA_FUZZ", "200")), 100
VALUES: list[Any] = [None, True, False, 0, 1, 2, -1, 7, 1.0, 1.5, -0.0, 2**31, 2**53 + 1, 2**63, 2**70, -(2**70), 1e308]
VALUES += [
    1e-320,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    " ",
    "0",
    "1",
    "1.0",
    "1.5",
    "nan",
    "inf",
    "1e999",
    "1_0",
]
VALUES += [
    "cat",
    "٣",
    "\ud800",
    "a\nb",
    "/",
    "..",
    "a\0b",
    "x" * 300,
    "000001.jpg",
    [],
    [1],
    [[1, 2], 3],
    {},
    {"id": 1},
]
VALUES += [[1, 2, 3, 4], [1, 2, "3", "4.5"], [0, 0, 0, 0], [-5, -5, 9, 9], [1e300, 0, 1e308, 1], 10**400]
MISSING = object()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    boxes = [box(1 + i % 3, 1 + i % 2, (4.0, 4.0, 8.0, 8.0), iscrowd=int(i == 5)) for i in range(9)]
    return write_coco(tmp_path_factory.mktemp("fuzz"), [(48, 32), (32, 48), (40, 40)], boxes, splits=("train",))


def mutate(content: Any, rng: random.Random) -> None:
    """One to three values anywhere in the tree become others, or go."""
    for _ in range(rng.randint(1, 3)):
        node: Any = content
        key: Any = rng.choice(["images", "annotations", "categories"] * 9 + ["new"])
        while isinstance(child := at(node, key), dict | list) and child and rng.random() < 0.9:
            node, key = child, rng.choice(list(child) if isinstance(child, dict) else range(len(child)))
        value = rng.choice([*VALUES, MISSING, MISSING, MISSING])
        if value is not MISSING:
            node[key] = copy.deepcopy(value)
        elif isinstance(node, list) or key in node:
            del node[key]


def at(node: Any, key: Any) -> Any:
    return node.get(key) if isinstance(node, dict) else node[key]


def outcome(root: Path, max_flawed: float, backend: str) -> str:
    """Raises whatever is no DataError of one line."""
    try:
        split = read_coco(root, "train")
        refuse([split.flaws], max_flawed)
    except DataError as error:
        if "\n" in str(error) or not str(error).encode():
            raise
        return "refused"
    truth = assert_consistent(split)
    dataset = CocoDataset(split, train_transform("tiny"))
    evaluated = CocoDataset(split, eval_transform("tiny"))
    assert sum(len(evaluated[i].target) for i in range(len(evaluated))) == len(split.labels)
    worst_batch(dataset, 1).made_up()
    rows = [[*one["bbox"], 0.5, one["category_id"]] for one in truth]
    ids = torch.tensor([one["image_id"] for one in truth], dtype=torch.int64)
    table = DetectionTable(ids, torch.tensor(rows, dtype=torch.float64).reshape(-1, 6))
    ground_truth = GroundTruth(split.ground_truth(), backend)
    metrics = coco_metrics(ground_truth, table)
    scored = [one for one in ground_truth.index.dataset["annotations"] if not one["iscrowd"]]
    assert len(scored) == len(split.labels)
    assert all(0 <= one["area"] <= 1e10 for one in scored)
    assert set(METRICS) <= set(metrics)
    return "read"


@pytest.mark.parametrize("chunk", range((COUNT + CHUNK - 1) // CHUNK))
def test_a_mutated_file_is_read_consistently_or_refused(root: Path, chunk: int) -> None:
    base = json.loads((annotation_path(root)).read_text())
    outcomes = []
    try:
        for number in range(chunk * CHUNK, (chunk + 1) * CHUNK):
            rng, content = random.Random(number), json.loads(json.dumps(base))
            mutate(content, rng)
            annotation_path(root).write_text(json.dumps(content))
            try:
                outcomes.append(outcome(root, rng.choice([0.01, 1.0]), rng.choice(list(BACKENDS))))
            except Exception as error:
                raise AssertionError(f"mutation {number}: {json.dumps(content)[:3000]}") from error
    finally:
        annotation_path(root).write_text(json.dumps(base))
    assert {"read", "refused"} <= set(outcomes)
