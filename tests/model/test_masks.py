"""The mask head against its plain twin, which runs on every query; its shortcuts, sizes and prior."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.plain.masks import PlainMaskAttention, PlainMaskHead, plain_mask_losses
from fovea_detr.build import build_criterion
from fovea_detr.loss.criterion import mean_objects
from fovea_detr.model import masks as head_module
from fovea_detr.model.detr import DETR
from fovea_detr.model.masks import MaskHead
from fovea_detr.predict.capture import capture
from fovea_detr.types import Batch, Predictions, Target
from tests.model.builders import random_batch, small_config, small_model

SIZES_HW = [(64, 96), (48, 70)]
KINDS: dict[str, list[str]] = {
    "tiny": [],
    "plain": ["model.fovea=false", "model.loss=softmax"],
    "resnet18": ["model.backbone=resnet18"],
    "resnet50_dc5": ["model.backbone=resnet50", "model.dc5=true"],
    "wide": ["model.hidden=64", "model.heads=4", "mixture=head_query"],
    "prior": ["model.mask_prior=last"],
    "prior_of_half_the_heads": ["model.mask_prior=last", "mixture=head", "dynamic_scale=type4"],
    "prior_of_half_the_queries": ["model.mask_prior=last", "mixture=query"],
}


def mask_model(*overrides: str) -> DETR:
    return small_model("model.masks=true", *overrides)


def head_of(model: DETR) -> MaskHead:
    assert model.mask_head is not None
    return model.mask_head


def random_masks(*counts: int) -> list[Target]:
    draw = torch.Generator().manual_seed(3)
    return [
        Target(
            torch.randint(1, 5, (count,), generator=draw),
            0.2 + 0.3 * torch.rand(count, 4, generator=draw),
            torch.rand(count, *size, generator=draw) < 0.4,
        )
        for count, size in zip(counts, SIZES_HW, strict=True)
    ]


def plain_masks(model: DETR, batch: Batch) -> Tensor:
    """As published: from the parts of the detector, with the same weights (whose gradients go to them)."""
    config = model.config
    assert config is not None
    _, seen = model.detect(batch)
    assert seen is not None
    sizes = (config.model.hidden, config.model.heads)
    attention, head = PlainMaskAttention(*sizes), PlainMaskHead(*sizes, model.backbone.channels)
    share(attention, model.bbox_attention)
    share(head, model.mask_head)
    grid = seen.is_padding.shape[1:]
    memory, cells = (x.transpose(1, 2).unflatten(2, grid) for x in (seen.memory, seen.cells))
    prior = None if seen.prior is None else seen.prior.dense()
    maps = attention(seen.decoded, memory, seen.is_padding, prior)
    return head(cells, maps, seen.pyramid[::-1])


def share(plain: nn.Module, ours: nn.Module | None) -> None:
    """Give a module the very parameters of another one."""
    assert ours is not None
    for name, parameter in ours.named_parameters():
        owner, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(owner), leaf, parameter)
    assert dict(plain.named_parameters()) == dict(ours.named_parameters())


def gradients(model: DETR, total: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    found = torch.autograd.grad(total, parameters, allow_unused=True, retain_graph=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


def assert_equal_gradients(ours: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    assert ours.keys() == plain.keys()
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    assert largest > 0
    for name, gradient in ours.items():
        assert (gradient - plain[name]).abs().max() <= 1e-5 * largest, name


@pytest.mark.parametrize("overrides", KINDS.values(), ids=KINDS)
def test_masks_and_gradients_of_the_plain_head(overrides: list[str]) -> None:
    model, batch = mask_model(*overrides), random_batch(*SIZES_HW)
    out, plain = model(batch), plain_masks(model, batch)
    assert out.masks.shape == plain.shape == (2, 7, 16, 24)
    torch.testing.assert_close(out.masks, plain, rtol=1e-4, atol=1e-5)
    weights = torch.randn(plain.shape, generator=torch.Generator().manual_seed(0))
    assert_equal_gradients(gradients(model, (out.masks * weights).sum()), gradients(model, (plain * weights).sum()))


@pytest.mark.parametrize("counts", [(3, 2), (0, 4), (4, 0)])
def test_matched_queries_alone_give_the_loss_and_gradients_of_all(counts: tuple[int, int]) -> None:
    model, batch, targets = mask_model(), random_batch(*SIZES_HW), random_masks(*counts)
    criterion = build_criterion(small_config("model.masks=true"))
    out = model(batch)
    losses = criterion(out, targets)
    masks = plain_masks(model, batch)
    parts = plain_mask_losses(masks, targets, losses.matches[-1], mean_objects([targets], masks.device))
    for part, plain in zip(("mask", "dice"), parts, strict=True):
        torch.testing.assert_close(losses.by_layer[part], plain, rtol=1e-5, atol=1e-7)
    ours = losses.by_layer["mask"].sum() + losses.by_layer["dice"].sum()
    assert_equal_gradients(gradients(model, ours), gradients(model, sum(parts).sum()))  # type: ignore[union-attr]


def test_a_batch_without_objects_gives_the_head_gradients_of_zero() -> None:
    """So that every rank has a gradient of every parameter, and the optimizer treats it as any other step."""
    model = mask_model("model.freeze_detector=true")
    losses = build_criterion(small_config("model.masks=true"))(model(random_batch(*SIZES_HW)), random_masks(0, 0))
    assert losses.by_layer["mask"].item() == losses.by_layer["dice"].item() == 0
    found = gradients(model, losses.total)
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(gradient.any() for gradient in found.values())


def test_chosen_queries_in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = mask_model(), random_batch(*SIZES_HW)
    with torch.no_grad():
        everything = model(batch).masks
        chosen = [torch.tensor([5, 0, 6, 5]), torch.zeros(0, dtype=torch.int64)]
        monkeypatch.setattr(head_module, "CHUNK", 1)
        rows: list[int] = []
        head_of(model).out_lay.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
        first, second = model(batch).masks_of(chosen)
    assert max(rows) == 1
    torch.testing.assert_close(first, everything[0, chosen[0]], rtol=1e-4, atol=1e-5)
    assert second.shape == (0, 16, 24)


def test_what_does_not_depend_on_the_query_is_computed_once_an_image() -> None:
    model, batch = mask_model(), random_batch(*SIZES_HW)
    seen: list[Sequence[int]] = []
    for name in ("adapter1", "adapter2", "adapter3"):
        head_of(model).get_submodule(name).register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    out = model(batch)
    out.masks_of([torch.arange(7)] * 2)
    assert out.masks is not None
    assert [shape[0] for shape in seen] == [2, 2, 2]


def test_nothing_of_the_head_runs_before_masks_are_asked_for() -> None:
    model = mask_model()
    calls: list[Any] = []
    head_of(model).register_forward_hook(lambda *_: calls.append(_))
    out = model(random_batch(*SIZES_HW))
    assert (out.has_masks, calls) == (True, [])
    first = out.masks
    made = len(calls)
    assert made
    assert out.masks is first
    assert torch.equal(out.masks_of([torch.tensor([1])] * 2)[0], first[0, [1]])
    assert len(calls) == made


def test_masks_read_after_no_grad_have_no_graph() -> None:
    model = mask_model()
    with torch.no_grad():
        out = model(random_batch(*SIZES_HW))
    assert not out.masks.requires_grad


def test_predictions_without_masks() -> None:
    out = small_model()(random_batch(*SIZES_HW))
    assert (out.masks, out.mask_head, out.has_masks) == (None, None, False)
    assert Predictions(out.logits, out.boxes_cxcywh).masks is None


@pytest.mark.parametrize("size_hw", [(61, 87), (64, 97), (33, 130)])
@pytest.mark.parametrize("backbone", ["resnet18", "tiny", "convnext_tiny", "swin_t"])
def test_a_quarter_of_the_size_rounded_up(backbone: str, size_hw: tuple[int, int]) -> None:
    model = mask_model(f"model.backbone={backbone}")
    with torch.no_grad():
        masks = model(random_batch(size_hw)).masks
    assert masks.shape[-2:] == (-(-size_hw[0] // 4), -(-size_hw[1] // 4))
    assert masks.isfinite().all()


@pytest.mark.parametrize("multiple", [1, 64])
def test_padding_in_training_is_cut_off(multiple: int) -> None:
    """compile=true pads the sides of training images to multiples."""
    model = mask_model("model.backbone=resnet18").train()
    model.sides_multiple = multiple
    with torch.no_grad():
        assert model(random_batch((61, 87))).masks.shape[-2:] == (16, 22)


def test_each_query_looks_with_all_heads_at_cells_of_its_own_image() -> None:
    model, batch = mask_model("model.mask_prior=last"), random_batch(*SIZES_HW)
    seen: list[Tensor] = []
    assert model.bbox_attention is not None
    model.bbox_attention.register_forward_hook(lambda _, __, maps: seen.append(maps.unflatten(-1, (4, 6))))
    model(batch)
    torch.testing.assert_close(seen[0].sum((2, 3, 4)), torch.ones(2, 7))
    assert not seen[0][1, :, :, 3:].any()
    assert not seen[0][1, :, :, :, 5:].any()


@pytest.mark.parametrize("mixture", ["none", "head", "query"])
def test_the_prior_is_that_of_the_last_layer(mixture: str) -> None:
    """Heads and queries without a prior keep their scores: under one softmax such heads take mass from the others."""
    model, batch = mask_model("model.mask_prior=last", f"mixture={mixture}"), random_batch(SIZES_HW[0])
    _, seen = model.detect(batch)
    assert seen is not None
    assert seen.prior is not None
    log_prior = capture(model, batch).layers[-1].log_prior
    assert log_prior is not None
    torch.testing.assert_close(seen.prior.dense()[0], log_prior.flatten(2))
    without = model.bbox_attention(seen.decoded, seen.memory, seen.is_padding.flatten(1))  # type: ignore[misc]
    with_prior = model.bbox_attention(seen.decoded, seen.memory, seen.is_padding.flatten(1), seen.prior)  # type: ignore[misc]
    same = (without - with_prior).abs().amax((0, 2, 3)) < 1e-6  # [Q]
    assert same.tolist() == ([True] * 3 + [False] * 4 if mixture == "query" else [False] * 7)
    moved = (with_prior - without).sum(-1)[0, -1]  # [H], the mass of each head of the last query
    assert moved.sum().abs() < 1e-5
    if mixture == "head":
        assert moved[0] < 0 < moved[1]


def test_the_detector_is_the_same_with_and_without_masks() -> None:
    """Its random weights, its outputs and its state dict: a mask head changes nothing of it, bit for bit."""
    with_masks, without, batch = mask_model("model.mask_prior=last"), small_model(), random_batch(*SIZES_HW)
    state = with_masks.state_dict()
    assert list(state)[: len(without.state_dict())] == list(without.state_dict())
    assert all(torch.equal(state[name], value) for name, value in without.state_dict().items())
    ours, theirs = with_masks(batch), without(batch)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.boxes_cxcywh, theirs.boxes_cxcywh)


def test_a_frozen_detector_makes_no_graph_and_keeps_its_dropout() -> None:
    model = mask_model("model.freeze_detector=true", "model.dropout=0.3").train()
    out = model(random_batch(*SIZES_HW))
    assert not out.logits.requires_grad
    again = model(random_batch(*SIZES_HW))
    assert not torch.equal(out.logits, again.logits)
    assert again.masks_of([torch.tensor([0])] * 2)[0].requires_grad


def test_bf16() -> None:
    model, batch = mask_model(), random_batch(*SIZES_HW)
    twin = copy.deepcopy(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = twin(batch)
    with torch.no_grad():
        expected = model(batch).masks
        found = out.masks  # read outside of autocast
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
