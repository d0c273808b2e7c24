"""Checkpoints: names, broken files, what is refused or skipped, and a run's own pair of files."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from fovea_detr.errors import WeightsError
from fovea_detr.model.detr import DETR
from fovea_detr.model.published import in_our_names, our_name, published_name
from fovea_detr.runs.folder import RunFolder
from fovea_detr.training.checkpoint import latest, load_weights, read, read_state_dict, save
from tests.model.builders import small_model

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("*.npz"))
OURS = ["dynamic_scale=type3"]


@pytest.fixture(scope="module")
def source() -> DETR:
    """The model that files are made from."""
    return small_model(*OURS, seed=1)


@pytest.fixture
def model() -> DETR:
    """The model that files are loaded into: other weights."""
    return small_model(*OURS, seed=2)


def published(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + published_name(name): value for name, value in model.state_dict().items()}


def equal_weights(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def assert_one_line(error: pytest.ExceptionInfo[WeightsError], *words: str) -> None:
    line = str(error.value)
    assert "\n" not in line
    for word in words:
        assert word in line


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_published_names_and_back(path: Path) -> None:
    names = list(json.loads(str(np.load(path)["params"])))
    ours = [our_name(name) for name in names]
    assert [published_name(name) for name in ours] == names
    assert [our_name(name) for name in ours] == ours  # our own checkpoints pass through unchanged
    assert len(set(ours)) == len(names)
    assert not any("transformer." in name or "point" in name or "norm4" in name for name in ours)


@pytest.mark.parametrize(
    "overrides", [[], ["model.position=learned"], ["model.backbone=resnet18"], ["model.fovea=false"]]
)
def test_our_names_and_back(overrides: list[str]) -> None:
    names = list(small_model(*overrides).state_dict())
    assert [our_name(published_name(name)) for name in names] == names


def test_names_by_hand() -> None:
    pairs = {
        "backbone.0.body.layer1.0.downsample.0.weight": "backbone.body.layer1.0.downsample.0.weight",
        "backbone.1.row_embed.weight": "position.row_embed.weight",
        "transformer.encoder.layers.0.self_attn.in_proj_weight": "encoder.layers.0.self_attention.in_proj_weight",
        "transformer.decoder.layers.5.multihead_attn.out_proj.bias": "decoder.layers.5.cross_attention.out_proj.bias",
        "transformer.decoder.layers.0.norm4.weight": "decoder.layers.0.prior.norm.weight",
        "transformer.decoder.layers.0.point1.layers.2.bias": "decoder.layers.0.prior.reference.layers.2.bias",
        "transformer.decoder.layers.1.point2.weight": "decoder.layers.1.prior.offset.weight",
        "transformer.decoder.layers.1.point3.weight": "decoder.layers.1.prior.dynamic_scale.scale.weight",
        "class_embed.weight": "class_head.weight",
        "bbox_embed.layers.0.weight": "box_head.layers.0.weight",
        "query_embed.weight": "query_embed.weight",
    }
    assert {name: our_name(name) for name in pairs} == pairs
    assert {published_name(name): name for name in pairs.values()} == pairs


# ---- what loads ------------------------------------------------------------------------------------------------------

WRAPPED: dict[str, Callable[[nn.Module], Any]] = {
    "ours": lambda model: model.state_dict(),
    "ours_of_a_run": lambda model: {"format": 1, "epoch": 3, "model": model.state_dict()},
    "published": lambda model: {"model": published(model), "args": argparse.Namespace(lr=1e-4), "epoch": 49},
    "published_bare": published,
    "published_from_ddp": lambda model: {"model": published(model, "module.")},
    "state_dict_key": lambda model: {"state_dict": model.state_dict(), "hyper": {"lr": [1, 2.0, None]}},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before_torch_1.6"])
def test_everything_that_loads(
    wrap: Callable[[nn.Module], Any], zipped: bool, source: DETR, model: DETR, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(wrap(source), path, _use_new_zipfile_serialization=zipped)
    assert not equal_weights(source, model)
    report = load_weights(model, str(path))
    assert equal_weights(source, model)
    assert (report.loaded, report.skipped, report.missing) == (len(model.state_dict()), {}, [])
    assert report.describe() == f"weights: {report.loaded} tensors from {path}"


def test_a_state_dict_in_memory_and_a_home_folder(
    source: DETR, model: DETR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_weights(model, published(source))
    assert equal_weights(source, model)
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(small_model(*OURS, seed=3).state_dict(), tmp_path / "mine.pt")
    load_weights(model, "~/mine.pt")
    assert not equal_weights(source, model)


def test_a_torchvision_resnet_fills_the_backbone_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(weights=None)
    path = tmp_path / "resnet18.pth"
    torch.save(resnet.state_dict(), path)
    model = small_model("model.backbone=resnet18")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, path)
    for name, value in model.state_dict().items():
        theirs = resnet.state_dict().get(name.removeprefix("backbone.body."))
        assert torch.equal(value, before[name] if theirs is None else theirs)
    assert report.missing
    assert not any(name.startswith("backbone.") for name in report.missing)
    assert "left as initialised" in report.describe()
    with pytest.raises(WeightsError) as caught:
        load_weights(model, path, backbone_alone=False)
    assert_one_line(caught, str(path), "only the backbone")


def test_the_wrong_torchvision_resnet_is_refused() -> None:
    model = small_model("model.backbone=resnet18")
    with pytest.raises(WeightsError) as caught:
        load_weights(model, torchvision.models.resnet34(weights=None).state_dict())
    assert_one_line(caught, "backbone.body.layer1.2.conv1.weight")


# ---- what does not fit -----------------------------------------------------------------------------------------------


def test_another_number_of_classes_is_refused_or_skipped_and_said(source: DETR) -> None:
    model = small_model(*OURS, "data.num_classes=9", seed=2)
    head = {name: value.clone() for name, value in model.class_head.state_dict().items()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(model, published(source))
    assert_one_line(caught, "class_head.weight", "(6, 16)", "(10, 16)", "data.num_classes")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    report = load_weights(model, published(source), other_classes=True)
    assert set(report.skipped) == {"class_head.weight", "class_head.bias"}
    assert "class_head.weight ((6, 16) in the file, (10, 16) in the model)" in report.describe()
    assert report.loaded == len(before) - 2
    assert all(torch.equal(head[name], value) for name, value in model.class_head.state_dict().items())
    assert torch.equal(model.query_embed.weight, source.query_embed.weight)


MISFITS = {
    "fewer_decoder_layers": (["model.decoder_layers=1"], "the model has no decoder.layers.1."),
    "more_decoder_layers": (["model.decoder_layers=3"], "the file has no decoder.layers.2."),
    "queries": (["model.num_queries=9"], "set model.num_queries"),
    "width": (["model.hidden=8"], "(16"),
    "plain": (["model.fovea=false"], "the model has no decoder.layers.0.prior."),
    "another_scale": (["dynamic_scale=type4"], "dynamic_scale.scale.weight"),
    "another_backbone": (["model.backbone=resnet18"], "backbone.body."),
}


@pytest.mark.parametrize(("overrides", "words"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_named_and_changes_nothing(overrides: list[str], words: str, source: DETR) -> None:
    model = small_model(*OURS, *overrides, seed=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(model, published(source), other_classes=True)
    assert_one_line(caught, words)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# ---- files that are not checkpoints ----------------------------------------------------------------------------------


class Malicious:
    """Unpickling it runs a command."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.witness}",)


def truncated(path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])


def truncated_old_format(path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1000)}}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:40])


def zip_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/a.jpg", "x")


def tar_archive(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("a"))


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda _path: None, "there is no such file"),
    "folder": (lambda path: path.mkdir(), "there is no such file"),
    "empty": (lambda path: path.write_bytes(b""), "empty; expected a checkpoint or a state dict of torch.save"),
    "text": (lambda path: path.write_text("hello world\n" * 9), "not a checkpoint"),
    "web_page": (
        lambda path: path.write_text("<!DOCTYPE html>\n<title>404</title>"),
        "a web page: download the file itself",
    ),
    "page_after_space": (lambda path: path.write_text("\n <html>"), "a web page: download the file itself"),
    "json": (lambda path: path.write_text('{"a": 1}'), "a JSON file"),
    "numpy": (lambda path: np.savez(path.open("wb"), a=np.zeros(3)), "a numpy archive"),
    "torchscript": (lambda path: torch.jit.script(nn.Linear(2, 2)).save(str(path)), "a TorchScript archive"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x")), "a gzip archive: unpack it"),
    "safetensors": (lambda path: path.write_bytes(struct.pack("<Q", 9) + b'{"a": 1} '), "afetensors file"),
    "zip": (zip_archive, "a zip archive without a checkpoint of torch.save: unpack it"),
    "tar": (tar_archive, "a tar archive: unpack it"),
    "yaml": (lambda path: path.write_text("nc: 80\n"), "a text file, not a checkpoint"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1}, 4)), "not a readable checkpoint"),
    "lightning": (
        lambda path: torch.save({"pytorch-lightning_version": "2", "state_dict": {"w": torch.zeros(2)}}, path),
        "weights.pth (of PyTorch Lightning): the model has no w",
    ),
    "git_lfs_pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "a git-lfs pointer, not the file itself: run `git lfs pull`",
    ),
    "truncated": (truncated, "truncated or not a checkpoint"),
    "truncated_old_format": (truncated_old_format, "checkpoint"),
    "list": (lambda path: torch.save([torch.zeros(2)], path), "holds a list"),
    "tensor": (lambda path: torch.save(torch.zeros(2), path), "holds a Tensor"),
    "empty_dict": (lambda path: torch.save({}, path), "there are no tensors in it"),
    "dict_without_tensors": (lambda path: torch.save({"model": {}, "epoch": 3}, path), "there are no tensors in it"),
    "numbered_tensors": (lambda path: torch.save({0: torch.zeros(2)}, path), "there are no tensors in it"),
    "whole_module": (lambda path: torch.save(nn.Linear(2, 2), path), "only running code from it could load"),
    "unknown_names": (lambda path: torch.save({"weight": torch.zeros(2)}, path), "the model has no weight"),
}


@pytest.mark.parametrize(("write", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_refused_in_one_line(
    write: Callable[[Path], object], words: str, model: DETR, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(WeightsError) as caught:
        load_weights(model, path)
    assert_one_line(caught, str(path), words)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before_torch_1.6"])
def test_a_malicious_file_executes_nothing(zipped: bool, model: DETR, tmp_path: Path) -> None:
    path, witness = tmp_path / "weights.pth", tmp_path / "witness"
    content = {"model": model.state_dict(), "args": Malicious(witness)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError) as caught:
        load_weights(model, path)
    assert_one_line(caught, str(path), "only running code from it could load")
    assert not witness.exists()
    torch.load(path, weights_only=False)  # the file is what it says: torch itself would have run it
    assert witness.exists()


def test_reading_leaves_no_class_admitted(tmp_path: Path) -> None:
    path = tmp_path / "args.pth"
    torch.save({"args": argparse.Namespace(lr=1.0)}, path)
    assert read(path)["args"].lr == 1.0
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_a_state_dict_comes_without_its_wrapping(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": {"a": torch.ones(2), "note": "text"}, "b": torch.ones(1)}, path)
    assert list(read_state_dict(path)) == ["a"]
    assert list(in_our_names({"module.a": torch.ones(2)})) == ["a"]


# ---- a run's own files -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def test_nothing_saved_is_nothing_found(folder: RunFolder) -> None:
    assert latest(folder) is None


def test_the_newest_is_found_and_the_one_before_is_kept(folder: RunFolder) -> None:
    for epoch in range(3):
        save(folder, {"epoch": epoch, "weight": torch.full((3,), float(epoch))})
    newest, before = latest(folder), read(folder.checkpoint_before_path)
    assert newest is not None
    assert (newest["epoch"], newest["format"], before["epoch"]) == (2, 1, 1)
    assert torch.equal(newest["weight"], torch.full((3,), 2.0))
    assert sorted(path.name for path in folder.path.iterdir()) == ["checkpoint.pt", "checkpoint_before.pt"]


@pytest.mark.parametrize("left", [0, 1, 500])
def test_a_damaged_newest_falls_back(folder: RunFolder, left: int) -> None:
    for epoch in range(2):
        save(folder, {"epoch": epoch, "weight": torch.zeros(100)})
    folder.checkpoint_path.write_bytes(folder.checkpoint_path.read_bytes()[:left])
    found = latest(folder)
    assert found is not None
    assert found["epoch"] == 0
    log = (folder.path / "train.log").read_text()
    assert "using checkpoint_before.pt instead" in log
    assert log.count("\n") == 1


@pytest.mark.parametrize("flips", [1, 400])
def test_flipped_bytes_are_found_and_the_one_before_is_used(folder: RunFolder, flips: int) -> None:
    """Bytes of tensors only: torch.load reads the file without a word."""
    for epoch in range(2):
        save(folder, {"epoch": epoch, "weight": torch.full((100_000,), float(epoch))})
    content = bytearray(folder.checkpoint_path.read_bytes())
    start = content.find(torch.ones(64).numpy().tobytes())
    for place in torch.randperm(300_000, generator=torch.Generator().manual_seed(0))[:flips].tolist():
        content[start + place] ^= 1
    folder.checkpoint_path.write_bytes(content)
    assert torch.load(folder.checkpoint_path)["epoch"] == 1
    with pytest.raises(WeightsError, match=r"checkpoint\.pt: damaged"):
        read(folder.checkpoint_path)
    found = latest(folder)
    assert found is not None
    assert found["epoch"] == 0
    assert "damaged: some of its bytes" in (folder.path / "train.log").read_text()


def test_a_save_that_was_killed_between_its_two_steps(folder: RunFolder) -> None:
    """checkpoint.pt became checkpoint_before.pt and no new one was written."""
    save(folder, {"epoch": 0})
    folder.checkpoint_path.replace(folder.checkpoint_before_path)
    found = latest(folder)
    assert found is not None
    assert found["epoch"] == 0


def test_two_damaged_files_are_an_error_not_a_new_start(folder: RunFolder) -> None:
    for epoch in range(2):
        save(folder, {"epoch": epoch})
    for path in (folder.checkpoint_path, folder.checkpoint_before_path):
        path.write_bytes(b"")
    with pytest.raises(WeightsError) as caught:
        latest(folder)
    assert_one_line(caught, "checkpoint_before.pt")


def test_a_save_that_fails_leaves_a_checkpoint(folder: RunFolder) -> None:
    save(folder, {"epoch": 0})
    with pytest.raises(Exception, match="pickle"):
        save(folder, {"epoch": 1, "unpicklable": lambda: None})
    found = latest(folder)
    assert found is not None
    assert found["epoch"] == 0
