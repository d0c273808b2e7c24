"""Every command of the README: those that train are composed point by point, those that read run on a real study."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.bench import arguments
from fovea_detr.build import build_model
from fovea_detr.compose import load_config
from fovea_detr.config.schema import CONF_DIR
from tests.launch import ROOT, run_well

README = (ROOT / "README.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True) for line in re.findall(r"^ {4}((?:python|torchrun|make) .*)$", README, re.M)
]
TRAINING = [words for words in COMMANDS if "run.py" in words]
READING = [words for words in COMMANDS if words[1].startswith("analysis/") or "fovea_detr.study" in words]
MEASURING = [words for words in COMMANDS if words[:2] == ["make", "bench"]]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md"])
def test_every_link_leads_to_a_file(document: str) -> None:
    place = ROOT / document
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", place.read_text())
    assert [link for link in links if not (place.parent / link).exists()] == []


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_every_file_named_exists(document: str) -> None:
    """`runs/stop.py` in the architecture is a path inside the package; anywhere, names may be placeholders: mysite."""
    names = set(re.findall(r"`([\w/]+/[\w.]*\.(?:py|yaml|sh|html))`", (ROOT / document).read_text()))
    tops = (ROOT, ROOT / "fovea_detr")
    assert [
        name
        for name in names
        if not re.search("mysite|local.yaml", name) and not any((top / name).exists() for top in tops)
    ] == []


def test_the_python_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    config = load_config(["model=fovea_r50", "dynamic_scale=type3"])
    monkeypatch.chdir(tmp_path)
    torch.save(build_model(config).state_dict(), "checkpoint.pth")
    images = [torch.zeros(3, 64, 96, dtype=torch.uint8), torch.zeros(3, 96, 64, dtype=torch.uint8)]
    targets = [{"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])} for _ in images]
    names = {"images": images, "sizes_hw": torch.tensor([[64, 96], [96, 64]]), "targets": targets}
    exec(code, names)  # type: ignore[arg-type]
    assert names["losses"].total > 0  # type: ignore[attr-defined]
    assert names["found"].boxes_xyxy.shape == (300, 4)  # type: ignore[attr-defined]


def test_no_command_is_left_out() -> None:
    others = [words for words in COMMANDS if words not in TRAINING + READING + MEASURING]
    assert others == [["make", "demo"], ["make", "test"]]
    assert len(TRAINING) > 5
    assert len(READING) > 8


@pytest.mark.parametrize("words", TRAINING, ids=" ".join)
def test_a_training_command_composes(words: list[str], tmp_path: Path) -> None:
    overrides = [word for word in words[words.index("run.py") + 1 :] if "=" in word and not word.startswith("hydra/")]
    (tmp_path / "detr.pth").touch()
    overrides = [f"weights={tmp_path / 'detr.pth'}" if word.startswith("weights=") else word for word in overrides]
    choices = [
        [f"{word.partition('=')[0]}={value}" for value in word.partition("=")[2].split(",")] for word in overrides
    ]
    for point in itertools.product(*choices):
        load_config(list(point))


@pytest.mark.parametrize("words", MEASURING, ids=" ".join)
def test_a_measuring_command_is_understood(words: list[str]) -> None:
    arguments([part for word in words[2:] for part in shlex.split(word.removeprefix("ARGS="))])


TYPES = (["dynamic_scale=type2"], ["dynamic_scale=type3"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/mystudy: two seeds of type1, one of type2 and of type3."""
    root = tmp_path_factory.mktemp("readme")
    small = ["schedule.epochs=1", "data.train_images=16", "data.val_images=160", f"data.cache={root / 'cache'}"]
    where = ["experiment=tiny", "study=mystudy", f"runs={root / 'runs'}"]
    for point in (["dynamic_scale=type1"], ["dynamic_scale=type1", "seed=1"], *TYPES):
        run_well(*where, *small, *point)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_a_reading_command_runs(words: list[str], place: Path) -> None:
    points = sorted(
        path.name for path in (place / "runs/mystudy").iterdir() if "seed" not in path.name and path.is_dir()
    )
    names = {"POINT": points[-1], "OTHER_POINT": points[0], "dynamic_scale=type3": points[-1]}
    words = [re.sub(r"\b(OTHER_)?POINT$", lambda match: names[match[0]], word) for word in words if word != "--follow"]
    if "tail" in words:
        words = [names.get(word, word) for word in words]
    script = words[1] if words[1] == "-m" else str(CONF_DIR.parent / words[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, script, *words[2:]]
    done = subprocess.run(command, cwd=place, env=environment, text=True, capture_output=True, timeout=120)
    if "cancel" in words:
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), "there is nothing to cancel, and it says so"
    else:
        assert done.returncode == 0, done.stderr
        assert done.stdout
