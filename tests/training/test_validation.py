"""`evaluation.losses`: the losses of an evaluation against the criterion on its batches, one by one."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest
import torch

from fovea_detr import assembly, experiment
from fovea_detr.compose import load_config
from fovea_detr.machine import distributed
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.stop import StopFlag
from fovea_detr.training.loop import Trainer
from fovea_detr.training.state import TrainState
from fovea_detr.training.validation import ValidationLosses
from fovea_detr.types import Predictions
from tests.predictions import random_predictions, random_targets
from tests.training.test_resume import assert_equal_runs

TINY = ("experiment=tiny", "data.train_images=16", "data.val_images=11", "schedule.epochs=2", "schedule.lr_drop=1")


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    config = load_config([*TINY, f"runs={tmp_path}", f"data.cache={tmp_path}", "evaluation.losses=true"])
    folder = RunFolder(tmp_path / "tiny" / "point")
    folder.lock()
    return assembly.build_trainer(config, folder, torch.device("cpu"), StopFlag())


def test_they_are_the_means_over_the_batches_and_no_metric_changes(trainer: Trainer) -> None:
    metrics, _ = trainer.evaluate()
    trainer.config.evaluation.losses = False
    without, _ = trainer.evaluate()
    assert {name: value for name, value in metrics.items() if not name.startswith("val_")} == without
    assert trainer.val is not None
    model, size = trainer.state.model, trainer.config.evaluation.batch_size
    order = trainer.val.dataset.annotations.image_ids.argsort().tolist()
    by_hand: list[dict[str, float]] = []
    for batch, targets in trainer.val.loader.read([order[i : i + size] for i in range(0, len(order), size)]):
        with torch.no_grad():
            predictions = model(batch)
            losses = trainer.criterion(predictions, targets)  # alone: divided by the objects of this batch
        parts = {f"val_loss_{name}": value[-1].item() for name, value in losses.by_layer.items()}
        by_hand.append({"val_loss": losses.total.item(), **parts})
    assert len(by_hand) == 2
    for name in by_hand[0]:
        assert metrics[name] == pytest.approx(mean(one[name] for one in by_hand), rel=1e-6)
    assert {"val_class_error", "val_cardinality_error"} < metrics.keys()


def test_several_ranks_have_the_mean_of_one(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [(random_predictions(2, 2, 7, seed=i), random_targets(i, 2 * i, seed=i)) for i in range(5)]

    def means(parts: list[list[int]]) -> dict[str, float]:
        ranks, gathered = [ValidationLosses(trainer.criterion) for _ in parts], []
        for rank, part in zip(ranks, parts, strict=True):
            for number in part:
                rank.add(*batches[number])
        monkeypatch.setattr(distributed, "gather", lambda own: gathered.append(own) or gathered)
        return [rank.means() for rank in ranks][-1]

    assert means([[0, 2, 4], [1, 3], []]) == pytest.approx(means([[0, 1, 2, 3, 4]]), rel=1e-12)


def test_predictions_that_are_not_finite_have_no_losses(trainer: Trainer) -> None:
    losses = ValidationLosses(trainer.criterion)
    good = random_predictions(2, 2, 7)
    losses.add(good, random_targets(1, 2))
    losses.add(Predictions(good.logits * float("nan"), good.boxes_cxcywh), random_targets(1, 2))
    assert losses.means() == {}


def test_an_epoch_that_an_older_version_began_has_no_mean_of_a_new_number() -> None:
    model = torch.nn.Linear(1, 1)
    state = TrainState(model, torch.optim.AdamW(model.parameters()), sums={"loss": 2.0}, batches_done=1)
    state.add_losses({"loss": 1.0, "class_error": 50.0})
    assert state.sums == {"loss": 3.0}
    state.sums = {}
    state.add_losses({"loss": 1.0, "class_error": 50.0})
    assert state.sums == {"loss": 1.0, "class_error": 50.0}


@pytest.mark.slow
def test_they_and_the_average_change_no_training(tmp_path: Path) -> None:
    plain = load_config([*TINY, f"runs={tmp_path / 'plain'}", f"data.cache={tmp_path}"])
    more = load_config(
        [*TINY, f"runs={tmp_path / 'more'}", f"data.cache={tmp_path}", "evaluation.losses=true", "train.ema=0.9"]
    )
    for config in (plain, more):
        experiment.run(config, "point")
    folders = [RunFolder(Path(config.runs) / "tiny" / "point") for config in (plain, more)]
    with pytest.raises(AssertionError):
        assert_equal_runs(*folders)  # the history has more numbers
    known = folders[0].history()[0].keys()
    histories = [
        [{key: line[key] for key in known if key != "timing"} for line in folder.history()] for folder in folders
    ]
    assert histories[0] == histories[1]
    ours, theirs = (torch.load(folder.checkpoint_path)["model"] for folder in folders)
    assert all(value.equal(theirs[name]) for name, value in ours.items())
