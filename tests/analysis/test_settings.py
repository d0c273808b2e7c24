from __future__ import annotations

import pytest
import yaml

from analysis.reading.runs import progress_of
from analysis.reading.settings import last_epoch, overrides
from fovea_detr.config.schema import leaves
from fovea_detr.runs.settings import as_typed
from fovea_detr.runs.stored import Stored


def stored(text: str) -> dict[str, str]:
    """As written, without the defaults of keys that are not there."""
    return Stored(text).found


RESOLVED = "seed: 0\nmodel:\n  name: fovea\n  heads: 8\n  loss:\n    l1: 5.0\nlr: 1.0e-05\nweights: null\n"


def test_settings_are_the_leaves_as_typed():
    wanted = {"seed": "0", "model": "fovea", "model.heads": "8", "model.loss.l1": "5", "lr": "1e-05", "weights": "null"}
    assert stored(RESOLVED) == wanted


def test_entries_parsed_separately_equal_the_whole_file(write):
    text = write("model=detr_r50", "schedule=500ep").config_text()
    assert stored(text).items() <= {key: as_typed(value) for key, value in _by_name(text).items()}.items()
    assert stored(text) == stored("# a comment\n" + text.replace("\nseed", "\n# another\n\nseed"))


def _by_name(text: str) -> dict[str, object]:
    return {key.removesuffix(".name"): value for key, value in leaves(yaml.safe_load(text)).items()}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{seed: 1, model: {name: a}}", {"seed": "1", "model": "a"}),
        ("list:\n- 1\n- 2\nseed: 1\n", {"list": "[1, 2]", "seed": "1"}),
        ("---\nseed: 1\n", {"seed": "1"}),
        (
            "base: &base\n  heads: 8\nmodel:\n  <<: *base\n  name: x\n",
            {"base.heads": "8", "model": "x", "model.heads": "8"},
        ),
        ('text: "two\n  lines"\nseed: 1\n', {"text": "two lines", "seed": "1"}),
    ],
)
def test_other_styles_of_yaml_are_read_too(text, wanted):
    assert stored(text) == wanted


@pytest.mark.parametrize("text", ["", "7", "- a", "null", "[", "a: [", "\0", "study: s\n"])
def test_an_invalid_configuration_is_an_error(text):
    with pytest.raises((ValueError, yaml.YAMLError)):
        stored(text)


def test_overrides_are_read_off_the_folders_name():
    assert overrides("dynamic_scale=type3,seed=1") == {"dynamic_scale": "type3", "seed": "1"}
    assert overrides("base") == {}


def test_an_extended_run_ends_with_the_epoch_of_its_extension() -> None:
    assert last_epoch({"schedule.epochs": "40", "extend": "null"}) == "40"
    assert last_epoch({"schedule.epochs": "40", "extend": "60"}) == "60"
    assert last_epoch({"schedule.epochs": "40"}) == "40", "a folder from before the key"
    assert progress_of({"schedule.epochs": "40", "extend": "60"}, [{"epoch": 1}]).current_epoch({"epoch": 49}) == (
        "epoch 50/60"
    )
