"""Contexts that restore floating-point mode, gradients, buffers and generators."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
from torch import Tensor, nn

from fovea_detr.machine.device import denormals_flushed, restored_afterwards

CPU = torch.device("cpu")


def tail() -> Tensor:
    """The softmax weight of a distant cell: 1e-40."""
    return torch.tensor([0.0, -92.0]).softmax(-1)[1:] * 1.0


def test_denormals_are_flushed_only_inside() -> None:
    if not torch.set_flush_denormal(False):
        pytest.skip("this CPU cannot flush denormals")
    assert tail() > 0
    with pytest.raises(AssertionError), denormals_flushed(CPU):
        assert tail() > 0  # it is not: the block is left by an error
    assert tail() > 0


def test_threads_started_inside_flush_too() -> None:
    if not torch.set_flush_denormal(False):
        pytest.skip("this CPU cannot flush denormals")
    found: list[bool] = []
    with denormals_flushed(CPU):
        thread = Thread(target=lambda: found.append(bool((tail() == 0).all())))
        thread.start()
        thread.join()
    assert found == [True]


def test_buffers_mode_and_generator_are_restored_and_gradients_cleared() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with restored_afterwards(model, CPU):
        model.train()
        model(torch.randn(5, 3)).sum().backward()
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
