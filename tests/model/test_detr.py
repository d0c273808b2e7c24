"""The whole model: every kind runs and learns; padding and other images of the batch change nothing."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fovea_detr.model.detr import DETR, padding_of_cells
from fovea_detr.model.position import LearnedPosition
from fovea_detr.model.published import our_name, published_name
from fovea_detr.types import Batch, Predictions
from tests.model.builders import random_batch, small_config, small_model

KINDS = {
    "fovea": [],
    "plain": ["model.fovea=false"],
    "plain_softmax": ["model.fovea=false", "model.loss=softmax"],
    "resnet18": ["model.backbone=resnet18"],
    "resnet34": ["model.backbone=resnet34", "model.fovea=false"],
    "resnet50_dc5": ["model.backbone=resnet50", "model.dc5=true"],
    "pre_norm": ["model.pre_norm=true"],
    "plain_pre_norm": ["model.pre_norm=true", "model.fovea=false"],
    "learned_position": ["model.position=learned"],
    "one_query": ["model.num_queries=1", "mixture=head_query"],
    "even_queries": ["model.num_queries=6", "mixture=query"],
    "odd_heads": ["model.hidden=12", "model.heads=3", "mixture=head"],
    "one_head": ["model.heads=1", "mixture=head"],
    "heads_of_width_1": ["model.hidden=8", "model.heads=8"],
    "no_encoder": ["model.encoder_layers=0"],
    "one_decoder_layer": ["model.decoder_layers=1"],
    "four_decoder_layers": ["model.decoder_layers=4", "dynamic_scale=type4"],
    "type1": ["dynamic_scale=type1"],
    "type3": ["dynamic_scale=type3", "fovea.smooth=6.5"],
    "type5": ["dynamic_scale=type5", "mixture=head_query"],
    "laplace": ["kernel=laplace", "dynamic_scale=type3"],
    "cell_centre": ["fovea.cell_centre=true"],
}
SIZES_HW = [(64, 96), (48, 80)]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[list[str], DETR, Predictions]:
    overrides = KINDS[request.param]
    model = small_model(*overrides)
    return overrides, model, model(random_batch(*SIZES_HW))


@pytest.fixture(scope="module")
def fovea() -> DETR:
    return small_model("dynamic_scale=type3")


def test_shapes_and_ranges(kind: tuple[list[str], DETR, Predictions]) -> None:
    overrides, _, predictions = kind
    config = small_config(*overrides).model
    leading = (config.decoder_layers, len(SIZES_HW), config.num_queries)
    assert predictions.logits.shape == (*leading, 6)
    assert predictions.boxes_cxcywh.shape == (*leading, 4)
    assert predictions.logits.isfinite().all()
    assert ((predictions.boxes_cxcywh > 0) & (predictions.boxes_cxcywh < 1)).all()
    assert predictions.activation == ("softmax" if config.loss == "softmax" else "sigmoid")


def test_every_trainable_parameter_learns(kind: tuple[list[str], DETR, Predictions]) -> None:
    _, model, predictions = kind
    (predictions.logits.sum() + predictions.boxes_cxcywh.square().sum()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name


def test_classes_start_rare() -> None:
    bias = small_model().class_head.bias
    assert bias.sigmoid().tolist() == pytest.approx([0.01] * 6)
    assert small_model("model.loss=softmax", "model.fovea=false").class_head.bias.abs().max() < 1


def test_the_only_input_is_a_batch() -> None:
    assert list(inspect.signature(DETR.forward).parameters) == ["self", "batch"]
    assert {field.name for field in fields(Batch)} == {"images", "sizes_hw", "original_sizes_hw", "image_ids"}


def outputs(model: DETR, batch: Batch) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        predictions = model(batch)
    return predictions.logits, predictions.boxes_cxcywh


@pytest.mark.parametrize("overrides", [[], ["model.fovea=false"], ["model.backbone=resnet18", "mixture=head_query"]])
def test_other_images_change_no_image_without_padding(overrides: list[str]) -> None:
    model = small_model(*overrides)
    together, alone = outputs(model, random_batch(*SIZES_HW)), outputs(model, random_batch(SIZES_HW[0]))
    for ours, expected in zip(together, alone, strict=True):
        assert torch.allclose(ours[:, :1], expected, atol=1e-5)


def test_the_order_in_the_batch_changes_nothing(fovea: DETR) -> None:
    batch = random_batch(*SIZES_HW, (64, 96))
    order = torch.tensor([2, 0, 1])
    shuffled = Batch(batch.images[order], batch.sizes_hw[order], batch.original_sizes_hw[order])
    for ours, expected in zip(outputs(fovea, shuffled), outputs(fovea, batch), strict=True):
        assert torch.allclose(ours, expected[:, order], atol=1e-5)


def test_a_plain_model_ignores_the_foveas_axes() -> None:
    batch = random_batch(*SIZES_HW)
    axes = ["dynamic_scale=type5", "kernel=laplace", "mixture=head_query", "fovea.cell_centre=true"]
    plain, ignoring = (small_model("model.fovea=false", *overrides)(batch) for overrides in ([], axes))
    assert torch.equal(plain.logits, ignoring.logits)
    assert torch.equal(plain.boxes_cxcywh, ignoring.boxes_cxcywh)


def test_type5_has_the_published_names_of_learned_scales() -> None:
    names = list(small_model("dynamic_scale=type5").state_dict())
    assert [our_name(published_name(name)) for name in names] == names
    assert "transformer.decoder.layers.0.point3.weight" in map(published_name, names)


def test_padding_cells_have_no_influence(fovea: DETR, monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage in the features of padding cells: nothing changes."""
    batch = random_batch(*SIZES_HW)
    with torch.no_grad():
        features = fovea.backbone(batch.images)
    expected = outputs(fovea, batch)
    padding = cell_padding(batch.sizes_hw, (64, 96), (4, 6))
    assert padding.any()
    garbage = torch.where(padding[:, None], torch.full_like(features, 1e3), features)
    monkeypatch.setattr(fovea.backbone, "forward", lambda _images: garbage)
    for ours, wanted in zip(outputs(fovea, batch), expected, strict=True):
        assert torch.allclose(ours, wanted, atol=1e-5)


def test_size_on_disk_has_no_influence(fovea: DETR) -> None:
    batch = random_batch(*SIZES_HW)
    elsewhere = Batch(batch.images, batch.sizes_hw, batch.original_sizes_hw * 7)
    for ours, expected in zip(outputs(fovea, elsewhere), outputs(fovea, batch), strict=True):
        assert torch.equal(ours, expected)


def test_queries_with_a_prior_add_its_reference_to_their_boxes() -> None:
    """With a box head of zeros, boxes are the reference of layer 0 (in every layer) or 0.5; sizes are 0.5."""
    model = small_model("mixture=query", "model.num_queries=5")
    for parameter in model.box_head.parameters():
        torch.nn.init.zeros_(parameter)
    _, boxes = outputs(model, random_batch(*SIZES_HW))
    plain, felt = boxes[:, :, :2], boxes[:, :, 2:]
    assert (plain == 0.5).all()
    assert (felt[..., 2:] == 0.5).all()
    assert (felt[..., :2] != 0.5).all()
    assert torch.equal(felt[0], felt[1])


@pytest.mark.parametrize(
    "overrides", [[], ["model.fovea=false"], ["dynamic_scale=type4", "mixture=head_query"], ["dynamic_scale=type5"]]
)
def test_bfloat16_autocast_is_finite_and_close(overrides: list[str]) -> None:
    model, batch = small_model(*overrides), random_batch(*SIZES_HW)
    expected = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        predictions = model(batch)
    assert predictions.logits.dtype == predictions.boxes_cxcywh.dtype == torch.float32
    assert torch.allclose(predictions.boxes_cxcywh, expected.boxes_cxcywh, atol=0.05)
    (predictions.logits.sum() + predictions.boxes_cxcywh.sum()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all(), name


def test_learned_position_refuses_too_many_cells() -> None:
    model = small_model("model.position=learned")
    assert isinstance(model.position, LearnedPosition)
    with pytest.raises(ValueError, match="feature map has 2 x 51"):
        model(random_batch((32, 816)))


def test_padding_of_cells_is_the_masks_nearest_downsampling() -> None:
    """As published: the whole mask through `interpolate`, here for 300 random sizes and both strides' roundings."""
    draw = torch.Generator().manual_seed(0)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=draw))

    for _ in range(300):
        padded = integer(1, 1400), integer(1, 1400)
        stride = (16, 32)[integer(0, 1)]
        cells = math.ceil(padded[0] / stride), math.ceil(padded[1] / stride)
        sizes = torch.tensor([[integer(1, padded[0]), integer(1, padded[1])], padded])
        mask = torch.ones(2, *padded)
        for one, (height, width) in zip(mask, sizes.tolist(), strict=True):
            one[:height, :width] = 0
        expected = functional.interpolate(mask[None], size=cells)[0].bool()
        assert torch.equal(cell_padding(sizes, padded, cells), expected), (padded, sizes, cells)


def cell_padding(sizes_hw: Tensor, padded_hw: tuple[int, int], cells_hw: tuple[int, int]) -> Tensor:
    """[B, rows, columns]: both sides of `padding_of_cells` put together."""
    rows, columns = (padding_of_cells(sizes_hw[:, i], padded_hw[i], cells_hw[i]) for i in (0, 1))
    return rows[:, :, None] | columns[:, None, :]
