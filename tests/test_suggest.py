"""Keys that do not exist, and the keys that were meant."""

from __future__ import annotations

import pytest

from fovea_detr.compose import load_config
from fovea_detr.config.schema import Config, leaves
from fovea_detr.config.suggest import OTHER_NAMES, known_keys, suggestion
from fovea_detr.errors import ConfigError


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("batch_size", "schedule.batch_size or evaluation.batch_size"),
        ("--lr", "schedule.lr"),
        ("--learning-rate", "schedule.lr"),
        ("epochs", "schedule.epochs"),
        ("schedule.epoch", "schedule.epochs"),
        ("max_epochs", "schedule.epochs"),
        ("imgsz", "data.long_side"),
        ("--use-ema", "train.ema"),
        ("backbone", "model.backbone"),
        ("hidden_dim", "model.hidden"),
        ("train.num_workers", "data.workers"),
        ("dynamicscale", "dynamic_scale"),
        ("sead", "seed"),
        ("data.rot", "data.root"),
        ("wieght_decay", "schedule.weight_decay"),
        ("--output-dir", "runs=FOLDER"),
        ("fovea.smoth", "fovea.smooth"),
    ],
)
def test_the_key_that_was_meant(typed: str, meant: str):
    assert suggestion(typed) == f"did you mean {meant}? "


@pytest.mark.parametrize("typed", ["nothing", "x", "", "zzz.qqq"])
def test_nothing_is_suggested_for_a_word_that_resembles_no_key(typed: str):
    assert suggestion(typed) == ""


def test_a_key_that_the_chosen_value_lacks_is_not_its_own_suggestion():
    words = "unknown key 'data.val_fraction' .*; the chosen value of the group data does not have it"
    with pytest.raises(ConfigError, match=words):
        load_config(["data=shapes", "data.val_fraction=0.2"])


def test_every_suggested_key_exists():
    assert {ours for ours in OTHER_NAMES if "=" not in ours and " " not in ours} <= leaves(Config()).keys()
    names = [name for names in OTHER_NAMES.values() for name in names]
    assert len(names) == len(set(names))
    assert not set(names) & set(known_keys())
