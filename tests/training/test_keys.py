"""Keys of training that are off by default: frozen parts, the best checkpoint, an early stop. All resume bit-equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fovea_detr.build import build_model
from fovea_detr.compose import load_config
from fovea_detr.config.schema import Config
from fovea_detr.errors import ConfigError
from fovea_detr.runs.identity import differences
from fovea_detr.runs.stored import config_text
from fovea_detr.training.frozen import train_mode
from fovea_detr.training.optim import build_optimizer
from fovea_detr.training.state import TrainState
from tests.launch import only_folder, run_well, start
from tests.model.builders import random_batch
from tests.training.test_resume import SIGNALS, assert_equal_runs, kill_while_training


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.freeze=neck",
            r"train\.freeze=neck: choose none or among backbone, encoder, decoder; several: backbone",
        ),
        ("train.freeze=backbone+neck", r"train\.freeze=backbone\+neck: choose none"),
        ("train.early_stop=0", r"train\.early_stop=0 must be at least 1 evaluation"),
        ("train.ema=2", r"train\.ema=2\.0 is a decay between 0 and 1, such as 0\.999"),
        ("train.ema=0", r"train\.ema=0\.0 is a decay"),
        ("train.ema=1", r"train\.ema=1\.0 is a decay"),
        ("train.ema=nan", r"train\.ema=nan is a decay"),
    ],
)
def test_bad_values_are_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config([override])


def test_frozen_parts_and_an_early_stop_make_another_run_and_the_best_checkpoint_does_not() -> None:
    text = config_text(load_config([]))
    assert differences(text, load_config(["train.freeze=encoder"])) == ["train.freeze: none -> encoder"]
    assert differences(text, load_config(["train.early_stop=3"])) == ["train.early_stop: null -> 3"]
    assert differences(text, load_config(["train.ema=0.9"])) == ["train.ema: null -> 0.9"]
    assert differences(text, load_config(["checkpoint.best=true", "evaluation.losses=true"])) == []


def test_an_evaluation_alone_has_no_losses(tmp_path: Path) -> None:
    (tmp_path / "any.pt").touch()
    with pytest.raises(ConfigError, match=r"evaluation\.losses=true logs losses of training, and mode=eval trains"):
        load_config(["mode=eval", f"weights={tmp_path / 'any.pt'}", "evaluation.losses=true"])


@pytest.mark.parametrize(
    ("override", "frozen"),
    [
        ("train.freeze=none", ()),
        ("train.freeze=backbone+encoder", ("backbone", "encoder")),
        ("train.freeze=decoder", ("decoder",)),
        ("schedule.lr_backbone=0", ("backbone",)),
    ],
)
def test_frozen_parts_keep_their_parameters_and_statistics(override: str, frozen: tuple[str, ...]) -> None:
    config = load_config(["experiment=tiny", override])
    model = build_model(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_optimizer(model, config.schedule)
    train_mode(model, model, config)
    predictions = model(random_batch((64, 96), (48, 64)))
    (predictions.logits.sum() + predictions.boxes_cxcywh.sum()).backward()
    optimizer.step()
    changed = {name.partition(".")[0] for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed >= {"backbone", "encoder", "decoder"} - set(frozen)
    assert not changed & set(frozen)
    statistics = {name for name in before if name.endswith("running_mean")}
    moved = {name for name in statistics if not model.state_dict()[name].equal(before[name])}
    assert moved == (set() if "backbone" in frozen else statistics)


def test_a_run_stalls_after_as_many_evaluations_without_a_better_ap() -> None:
    model = torch.nn.Linear(1, 1)
    state = TrainState(model, torch.optim.AdamW(model.parameters()))
    state.history = [{"AP": 0.1}, {}, {"AP": 0.3}, {"AP": 0.3}, {}]
    assert not state.has_stalled(None)
    assert state.has_stalled(1)
    assert not state.has_stalled(2)
    assert state.has_stalled(2, 0.2)
    assert not state.has_stalled(2, 0.31)
    assert not state.has_stalled(9)


# ---- real runs -------------------------------------------------------------------------------------------------------

SHORT = ("experiment=tiny", "model.dropout=0.1", "data.train_images=160", "data.val_images=21")
SHORT += ("checkpoint.minutes=0.003", "checkpoint.best=true")


def killed_and_resumed(arguments: tuple[str, ...], runs: Path) -> str:
    process = start(*arguments, f"runs={runs}")
    assert kill_while_training(process, runs, SIGNALS[0], 0.6, ranks=1), "the signal came too late"
    return run_well(*arguments, f"runs={runs}")


@pytest.mark.slow
def test_frozen_parts_and_the_best_checkpoint_are_bit_equal_after_a_kill(tmp_path: Path) -> None:
    arguments = (*SHORT, f"data.cache={tmp_path / 'cache'}", "schedule.epochs=5", "train.freeze=encoder")
    run_well(*arguments, f"runs={tmp_path / 'calm'}")
    killed_and_resumed(arguments, tmp_path / "killed")
    folders = [only_folder(tmp_path / name) for name in ("calm", "killed")]
    assert_equal_runs(*folders)
    result = folders[1].result()
    assert result is not None
    assert result["best"]["checkpoint"] == "best.pt"
    ours, theirs = (torch.load(folder.path / "best.pt") for folder in folders)
    assert (
        (ours["epoch"], ours["AP"])
        == (theirs["epoch"], theirs["AP"])
        == (result["best"]["epoch"], result["best"]["AP"])
    )
    assert all(value.equal(theirs["model"][name]) for name, value in ours["model"].items())
    last, first = (
        torch.load(folders[1].checkpoint_path)["model"],
        initial(load_config([*arguments, "data.num_classes=7"])),
    )
    encoder = [name for name in last if name.startswith("encoder.")]
    assert encoder
    assert all(last[name].equal(first[name]) for name in encoder)


def initial(config: Config) -> dict[str, torch.Tensor]:
    torch.manual_seed(config.seed)
    return build_model(config).state_dict()


@pytest.mark.slow
def test_a_run_stops_early_and_again_after_a_kill(tmp_path: Path) -> None:
    """The weights stay as they are, and so does AP: the second and the third evaluation are no better."""
    still = ("schedule.lr=1e-12", "schedule.lr_backbone=0", "schedule.epochs=20", "train.early_stop=2")
    out = killed_and_resumed((*SHORT, *still, f"data.cache={tmp_path / 'cache'}"), tmp_path / "runs")
    assert "stopped early: no better AP in the last 2 evaluations" in out
    folder = only_folder(tmp_path / "runs")
    result = folder.result()
    assert result is not None
    assert (result["epochs"], result["stopped_early"], result["best"]["epoch"]) == (3, True, 1)
    assert (folder.path / "matches.npz").exists()
    assert "done already" in run_well(*SHORT, *still, f"data.cache={tmp_path / 'cache'}", f"runs={tmp_path / 'runs'}")
