"""A DETR of Hugging Face transformers: its tensors find their places."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

import fovea_detr
from fovea_detr.model.detr import DETR
from fovea_detr.model.published import in_our_names, is_of_masks
from tests.model.builders import small_model

PLAIN = ["model=detr_r50", "model.backbone=resnet18"]
STAGE = re.compile(r"backbone\.body\.layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(.*)")
NORMS = {
    "encoder": ["self_attn_layer_norm", "final_layer_norm"],
    "decoder": ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"],
}


@pytest.fixture(scope="module")
def model() -> DETR:
    return small_model(*PLAIN, seed=1)


def their_name(name: str, version: int) -> str:
    """Written from the other side: from our names to those of version 4 or 5."""
    backbone = "model.backbone.conv_encoder.model." if version == 4 else "model.backbone.model."
    if match := STAGE.fullmatch(name):
        stage, block, kind, number, rest = match.groups()
        last = {"conv": "convolution", "bn": "normalization"}.get(kind) or ("convolution", "normalization")[int(number)]
        inner = "shortcut" if kind == "downsample." else f"layer.{int(number) - 1}"
        return f"{backbone}encoder.stages.{int(stage) - 1}.layers.{block}.{inner}.{last}.{rest}"
    for ours, theirs in (
        ("backbone.body.conv1.", f"{backbone}embedder.embedder.convolution."),
        ("backbone.body.bn1.", f"{backbone}embedder.embedder.normalization."),
        ("class_head.", "class_labels_classifier."),
        ("box_head.", "bbox_predictor."),
        ("input_proj.", "model.input_projection."),
        ("query_embed.", "model.query_position_embeddings."),
        ("decoder.norm.", "model.decoder.layernorm."),
    ):
        if name.startswith(ours):
            return name.replace(ours, theirs)
    stack = name.partition(".")[0]
    name = name.replace("self_attention", "self_attn").replace("cross_attention", "encoder_attn")
    name = re.sub(r"linear(\d)", r"fc\1" if version == 4 else r"mlp.fc\1", name)
    name = re.sub(r"\.norm(\d)\.", lambda m: f".{NORMS[stack][int(m[1]) - 1]}.", name)
    return "model." + (name if version == 4 else name.replace("out_proj", "o_proj"))


def their_state(state: Mapping[str, Tensor], version: int) -> dict[str, Tensor]:
    theirs: dict[str, Tensor] = {}
    for name, value in state.items():
        if "in_proj_" in name:
            for which, part in zip("qkv", value.chunk(3), strict=True):
                theirs[their_name(name.replace("in_proj_", f"{which}_proj."), version)] = part
        else:
            theirs[their_name(name, version)] = value
    return theirs


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_every_tensor_finds_its_place(model: DETR, version: int, prefix: str) -> None:
    """With Lightning's prefix, too, as its tutorials wrap such a model."""
    state = model.state_dict()
    theirs = their_state(state, version)
    assert "class_labels_classifier.weight" in theirs
    ours = in_our_names({f"{prefix}{name}": value for name, value in theirs.items()})
    assert ours.keys() == state.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


MASK_NAMES = {
    r"mask_head\.lay([12])\.": r"mask_head.conv\1.conv.",
    r"mask_head\.gn([12])\.": r"mask_head.conv\1.norm.",
    r"mask_head\.lay([345])\.": lambda m: f"mask_head.fpn_stages.{int(m[1]) - 3}.refine.conv.",
    r"mask_head\.gn([345])\.": lambda m: f"mask_head.fpn_stages.{int(m[1]) - 3}.refine.norm.",
    r"mask_head\.adapter(\d)\.": lambda m: f"mask_head.fpn_stages.{int(m[1]) - 1}.fpn_adapter.",
    r"mask_head\.out_lay\.": "mask_head.output_conv.",
    r"bbox_attention\.([qk])_linear\.": r"bbox_attention.\1_proj.",
}


@pytest.mark.parametrize("version", [4, 5])
def test_every_tensor_of_a_model_with_masks_finds_its_place(version: int) -> None:
    """DetrForSegmentation: version 4 has the published names in its head."""
    state = small_model(*PLAIN, "model.masks=true").state_dict()
    of_head = {name: value for name, value in state.items() if is_of_masks(name)}
    detector = their_state({name: value for name, value in state.items() if name not in of_head}, version)
    for theirs, mine in MASK_NAMES.items() if version == 5 else ():
        of_head = {re.sub(theirs, mine, name): value for name, value in of_head.items()}
    ours = in_our_names({f"detr.{name}": value for name, value in detector.items()} | of_head)
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[name], value) for name, value in state.items())


def test_a_backbone_of_timm_has_torchvisions_names(model: DETR) -> None:
    state = their_state(model.state_dict(), 4)
    timm = {
        (f"model.backbone.conv_encoder.model.{name.removeprefix('backbone.body.')}" if "backbone" in name else name): v
        for name, v in model.state_dict().items()
        if "backbone" in name
    }
    ours = in_our_names({**{n: v for n, v in state.items() if "backbone" not in n}, **timm})
    assert ours.keys() == model.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True])
def test_outputs_equal_those_of_transformers(masks: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install transformers to compare with its outputs")
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(out_features=[f"stage{i}" for i in range(1 if masks else 4, 5)])
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, num_labels=91
    )
    theirs = (transformers.DetrForSegmentation if masks else transformers.DetrForObjectDetection)(config).eval()
    for name, buffer in theirs.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    overrides = ["model=detr_r50", "model.backbone_weights=none", *(["model.masks=true"] * masks)]
    ours = fovea_detr.build_model(fovea_detr.load_config(overrides)).eval()
    fovea_detr.load_weights(ours, theirs.state_dict())
    batch = fovea_detr.collate([torch.randn(3, 160, 224), torch.randn(3, 128, 200)])
    inside = torch.zeros(2, 160, 224, dtype=torch.long)
    for mask, (height, width) in zip(inside, batch.sizes_hw.tolist(), strict=True):
        mask[:height, :width] = 1
    with torch.no_grad():
        out, expected = ours(batch), theirs(pixel_values=batch.images, pixel_mask=inside)
    torch.testing.assert_close(out.logits[-1], expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.boxes_cxcywh[-1], expected.pred_boxes, rtol=0, atol=1e-5)
    if masks:
        torch.testing.assert_close(out.masks, expected.pred_masks, rtol=0, atol=1e-4)
