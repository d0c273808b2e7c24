"""Contexts that restore floating-point mode, gradients, buffers and generators."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import pytest
import torch
from torch import Tensor, nn

from fovea_detr.machine import device
from fovea_detr.machine.device import bfloat16_instructions, denormals_flushed, restored_afterwards

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


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("flags\t\t: fpu avx512f avx512_vnni amx_int8", []),
        ("flags\t\t: avx512_bf16 fpu amx_bf16 amx_tile", ["amx_bf16", "avx512_bf16"]),
        ("Features\t: fp asimd bf16 i8mm", ["bf16"]),
        (None, None),
    ],
    ids=["neither", "x86", "ARM", "no such file"],
)
def test_bfloat16_instructions_are_read_from_the_processors_flags(
    flags: str | None, found: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = tmp_path / "cpuinfo"
    if flags is not None:
        facts.write_text(f"processor\t: 0\nmodel name\t: bfloat\n{flags}\nbogomips\t: 5192.24\n")
    monkeypatch.setattr(device, "CPU_FACTS", facts)
    assert bfloat16_instructions() == found
