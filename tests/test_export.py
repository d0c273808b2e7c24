"""The ONNX file gives the model's outputs, at any size and batch."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import fovea_detr
from fovea_detr import export
from fovea_detr.build import build_model
from fovea_detr.compose import load_config
from fovea_detr.errors import UserError
from fovea_detr.predict.loading import open_trained
from fovea_detr.runs.stored import config_text
from fovea_detr.types import Batch


def checkpoint(folder: Path, *overrides: str) -> Path:
    config = load_config(["experiment=tiny", "data.num_classes=4", *overrides])
    torch.manual_seed(0)
    path = folder / "checkpoint.pt"
    content = {"model": build_model(config).state_dict(), "config": config_text(config), "categories": {1: "cat"}}
    torch.save(content, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("dynamic_scale=type4", "mixture=head_query", "fovea.cell_centre=true"),
        ("dynamic_scale=type5",),
        ("kernel=laplace",),
        ("model=detr_focal_tiny", "model.loss=softmax"),
        ("model.masks=true", "model.mask_prior=last", "model.batch_norm=frozen"),
        ("model=detr_focal_tiny", "model.masks=true", "model.backbone=resnet18", "model.backbone_weights=none"),
    ],
    ids=str,
)
def test_the_file_gives_the_models_outputs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], overrides: tuple[str, ...]
) -> None:
    import onnx
    import onnxruntime

    source, to = checkpoint(tmp_path, *overrides), tmp_path / "out" / "model.onnx"
    export.main([str(source), "--to", str(to)])
    assert capfd.readouterr().out.count("logits equal to ") == len(export.CHECKED)
    session = onnxruntime.InferenceSession(str(to), providers=["CPUExecutionProvider"])
    predictor = fovea_detr.load_run(source, device="cpu")
    pictures = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((100, 128), (128, 96))]
    batch = predictor.batch(pictures)
    found = session.run(None, {"images": batch.images.numpy(), "sizes_hw": batch.sizes_hw.numpy()})
    logits, boxes, *masks = (np.asarray(one) for one in found)
    with torch.no_grad():
        expected = predictor.model(batch)
    np.testing.assert_allclose(logits, expected.logits[-1], rtol=0, atol=1e-4)
    np.testing.assert_allclose(boxes, expected.boxes_cxcywh[-1], rtol=0, atol=1e-4)
    assert len(masks) == expected.has_masks
    for sides in ((batch.images, batch.sizes_hw), (batch.images[:, :, :97, :83], torch.tensor([[97, 83], [90, 70]]))):
        found = session.run(["pred_masks"], {"images": sides[0].numpy(), "sizes_hw": sides[1].numpy()}) if masks else []
        with torch.no_grad():
            own = predictor.model(Batch(*sides, sides[1])).masks
        np.testing.assert_allclose([np.asarray(one) for one in found], [own] * len(masks), rtol=1e-4, atol=1e-4)
    facts = {entry.key: entry.value for entry in onnx.load(to).metadata_props}
    assert json.loads(facts["names"]) == {"1": "cat"}
    assert "128 pixels" in facts["preprocessing"]
    assert ("pred_masks" in facts["postprocessing"]) == bool(masks)
    assert ("softmax" in facts["postprocessing"]) == ("model.loss=softmax" in overrides)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"the export needs onnx, onnxscript, onnxruntime: pip install onnx"):
        export.export(open_trained(checkpoint(tmp_path)), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("to", "words"),
    [("", "a folder; name a file"), ("file/model.onnx", "the folder .*/file cannot be made"), (".", "name a file")],
)
def test_a_target_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str, words: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as left:
        export.main([str(checkpoint(tmp_path)), "--to", str(tmp_path / to)])
    assert left.value.code == 2
    assert re.fullmatch(f"error: --to.*{words}.*\n", capsys.readouterr().err)


def test_the_metadata_have_the_sizes_of_the_run(tmp_path: Path) -> None:
    sizes = ("data.recipe=coco", "data.short_side=480", "data.max_side=800", "data.long_side=128")
    found = export.metadata(open_trained(checkpoint(tmp_path, *sizes)))["preprocessing"]
    assert "the short side to 480 pixels, or less so that the long side is about 800 at most" in found


def test_a_file_with_other_outputs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def __init__(self, *_: object, **__: object) -> None: ...

        def run(self, *_: object) -> list[np.ndarray]:
            return [np.zeros(1), np.full(1, np.nan)]

    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(UserError, match="its outputs differ from the model's by"):
        export.compare(export.Exported(open_trained(checkpoint(tmp_path)).model), tmp_path / "model.onnx")
