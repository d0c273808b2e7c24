"""The plain twin of `experiment=tiny` sees the same images, boxes and flips in the same order, and trains."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.plain.run import PlainRun, main, ordered
from fovea_detr.compose import load_config
from fovea_detr.config.schema import Config
from fovea_detr.data.batches import epoch_batches
from fovea_detr.data.coco import CocoDataset, Draw
from fovea_detr.data.readers import read_coco
from fovea_detr.data.shapes.generate import generate
from fovea_detr.data.transforms import train_transform


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("shapes"), 16, 8)


@pytest.fixture(scope="module")
def config() -> Config:
    config = load_config(["experiment=tiny", "schedule.epochs=2", "schedule.batch_size=4"])
    return replace(config, data=replace(config.data, num_classes=7))


def test_batches_are_in_the_same_order(config: Config) -> None:
    for epoch in (0, 1):
        assert ordered(19, 4, config.seed, epoch) == epoch_batches(19, 4, 1, 0, config.seed, epoch)


def test_images_are_flipped_alike_and_hold_the_same_objects(root: Path, config: Config) -> None:
    run = PlainRun(config, root)
    ours = CocoDataset(read_coco(root, "train"), train_transform("tiny"), in_memory=True)
    for epoch in (0, 1):
        for index in range(len(ours)):
            example = ours[Draw(index, epoch, config.seed)]
            image, theirs = run.train[index, epoch, config.seed]
            assert example.image.shape == image.shape
            assert example.target.labels.tolist() == theirs["labels"].tolist()
            torch.testing.assert_close(example.target.boxes_cxcywh, theirs["boxes"], rtol=0, atol=1e-6)


def test_a_run_reports_its_time(root: Path, config: Config) -> None:
    result = PlainRun(config, root).fit()
    assert len(result["AP"]) == 2
    assert 0 <= result["AP"][-1] <= 1
    assert result["training_seconds"] > 0
    assert result["evaluation_seconds"] > 0


def test_the_command_refuses_a_value_without_a_plain_formula_in_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["plain.run", str(root), "0", "kernel=laplace"])
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert error.startswith("error: kernel=laplace has no plain twin")
    assert error.count("\n") == 1
