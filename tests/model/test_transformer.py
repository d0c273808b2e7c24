"""Layers against torch's own transformer layers, and the decoder's bookkeeping around the prior."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fovea_detr.build import build_decoder
from fovea_detr.fovea.prior import CellGrid, hiding
from fovea_detr.model.attention import for_layers
from fovea_detr.model.transformer import DecoderLayer, EncoderLayer, FeedForward
from tests import reference
from tests.fovea.priors import assert_near, randomise
from tests.model.builders import small_config

HIDDEN, HEADS, WIDE = 12, 3, 20
NORM_PLACES = pytest.mark.parametrize("pre_norm", [False, True], ids=["post_norm", "pre_norm"])
TORCH_NAMES = {"self_attention.": "self_attn.", "cross_attention.": "multihead_attn."}


def torch_twin(layer: nn.Module, kind: type[nn.Module], pre_norm: bool) -> nn.Module:
    """torch's layer with the same weights."""
    twin = kind(HIDDEN, HEADS, WIDE, dropout=0.0, batch_first=True, norm_first=pre_norm)
    state = {}
    for name, value in layer.state_dict().items():
        for ours, theirs in TORCH_NAMES.items():
            name = name.replace(ours, theirs)
        state[name] = value
    twin.load_state_dict(state)
    return twin


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padding() -> Tensor:
    is_padding = torch.zeros(2, 7, dtype=torch.bool)
    is_padding[1, 5:] = True
    return is_padding


@NORM_PLACES
def test_encoder_layer_equals_torch(pre_norm: bool) -> None:
    """Without positions, which torch's layer does not have."""
    layer = EncoderLayer(HIDDEN, HEADS, WIDE, 0.0, pre_norm)
    randomise(layer, seed=1)
    cells = drawn(2, 7, HIDDEN, seed=2)
    theirs = torch_twin(layer, nn.TransformerEncoderLayer, pre_norm)(cells, src_key_padding_mask=padding())
    rows = cells.flatten(0, 1)
    ours = layer(rows, torch.zeros_like(rows), hiding(padding(), torch.float32))
    assert_near(ours.view_as(theirs), theirs, 1e-5)


@NORM_PLACES
def test_decoder_layer_equals_torch(pre_norm: bool) -> None:
    layer = DecoderLayer(HIDDEN, HEADS, WIDE, 0.0, pre_norm, prior=None)
    randomise(layer, seed=1)
    content, memory = drawn(2, 5, HIDDEN, seed=2), drawn(2, 7, HIDDEN, seed=3)
    twin = torch_twin(layer, nn.TransformerDecoderLayer, pre_norm)
    theirs = twin(content, memory, memory_key_padding_mask=padding())
    rows, cells = content.flatten(0, 1), memory.flatten(0, 1)
    (seen,) = for_layers([layer.cross_attention], cells, cells, batch=2)
    ours = layer(rows, torch.zeros_like(rows), seen, mask=hiding(padding(), torch.float32))
    assert_near(ours.view_as(theirs), theirs, 1e-5)


def test_positions_reach_queries_and_keys_but_not_values() -> None:
    """Attention to a single cell returns the value of that cell, wherever the cell is."""
    layer = EncoderLayer(HIDDEN, HEADS, WIDE, 0.0, pre_norm=False)
    randomise(layer, seed=1)
    cells, nowhere = drawn(14, HIDDEN, seed=2), torch.zeros(14, HIDDEN)
    places = nowhere, drawn(14, HIDDEN, seed=4)
    one_cell = hiding(torch.arange(7).expand(2, -1) != 3, torch.float32)
    near, far = (layer(cells, place, one_cell) for place in places)
    assert_near(near, far, 1e-6)
    near, far = (layer(cells, place, torch.zeros_like(one_cell)) for place in places)
    assert not torch.allclose(near, far)


@pytest.mark.parametrize("fovea", [True, False], ids=["fovea", "plain"])
def test_decoder_by_formula(fovea: bool) -> None:
    """Positions are added to queries and keys, the prior gets each layer's input, the reference is layer 0's."""
    overrides = [f"model.fovea={fovea}", "model.decoder_layers=3", "dynamic_scale=type3", "mixture=head"]
    decoder = build_decoder(small_config(*overrides))
    randomise(decoder, seed=1)
    query_embed, memory, position = drawn(7, 16, seed=2), drawn(2, 6, 16, seed=3), drawn(2, 6, 16, seed=4)
    is_padding, sizes_hw = torch.zeros(2, 6, dtype=torch.bool), torch.tensor([[32, 48], [32, 30]])
    is_padding[1, 2::3] = True
    grid = CellGrid(2, 3, 16, torch.zeros(2, 2, dtype=torch.bool), is_padding[:, :3])
    outputs, point = decoder(query_embed, memory, position, sizes_hw, grid)

    parameters = dict(decoder.named_parameters())
    content, log_prior, expected_point = torch.zeros(2, 7, 16), None, None
    for layer, output in enumerate(outputs):
        weights = reference.part(parameters, f"layers.{layer}")
        if fovea:
            axes = {"grid": (2, 3, 16), "heads": 2, "scale_type": "type3", "smooth": 8.0, "mixture": "head"}
            inputs = (reference.part(weights, "prior"), content, query_embed, expected_point, sizes_hw)
            log_prior, expected_point = reference.prior(*inputs, **axes)
        content = reference.decoder_layer(weights, content, query_embed, memory, position, 2, log_prior, is_padding)
        expected = reference.layer_norm(content, parameters["norm.weight"], parameters["norm.bias"])
        assert_near(output, expected, 1e-5)
    if expected_point is None:
        assert point is None
    else:
        assert_near(point, expected_point, 1e-5)


def test_layer_0_alone_owns_the_reference_and_later_layers_reuse_it() -> None:
    decoder = build_decoder(small_config("model.decoder_layers=3"))
    priors: list[Any] = [layer.prior for layer in decoder.layers]
    assert [prior.reference is not None for prior in priors] == [True, False, False]
    handed: list[Any] = []
    for prior in priors:
        prior.register_forward_pre_hook(lambda _module, inputs: handed.append(inputs[2]))
    memory = drawn(1, 6, 16, seed=0)
    outputs, reference = decoder(
        drawn(7, 16, seed=1),
        memory,
        torch.zeros_like(memory),
        torch.tensor([[32, 48]]),
        CellGrid(2, 3, 16),
    )
    assert len(outputs) == 3
    assert handed[0] is None
    assert handed[1] is handed[2]
    assert handed[1].logits is reference
    assert reference.shape == (1, 7, 2)


def test_a_plain_decoder_has_no_reference() -> None:
    decoder = build_decoder(small_config("model.fovea=false"))
    memory = drawn(1, 6, 16, seed=0)
    sizes = torch.tensor([[32, 48]])
    _, reference = decoder(drawn(7, 16, seed=1), memory, memory, sizes, CellGrid(2, 3, 16))
    assert reference is None


def test_feed_forward_is_linear_relu_linear() -> None:
    torch.manual_seed(0)
    ours = FeedForward(4, 6, 2, num_layers=3)
    theirs = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    for mine, other in zip(ours.layers, [theirs[0], theirs[2], theirs[4]], strict=True):
        other.load_state_dict(mine.state_dict())
    x = drawn(3, 4, seed=1)
    assert torch.equal(ours(x), theirs(x))
