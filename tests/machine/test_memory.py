"""Peak memory, and recognising the errors of exhausted allocators."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import pytest
import torch

from fovea_detr.errors import OutOfMemoryError
from fovea_detr.machine import memory

CPU = torch.device("cpu")


def test_errors_of_allocators_are_recognised_and_others_are_not() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert memory.is_out_of_memory(caught.value)
    assert memory.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert memory.is_out_of_memory(MemoryError())
    assert memory.is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    with pytest.raises(RuntimeError) as caught:
        torch.matmul(torch.ones(2), torch.ones(3))
    assert not memory.is_out_of_memory(caught.value)
    assert not memory.is_out_of_memory(ValueError("out of memory"))


def test_exhausted_memory_is_one_line_with_the_place() -> None:
    message = r"^step 7, rank 1, images 3, 9: out of memory, .*allocate"
    where = memory.out_of_memory_as_error("step 7, rank 1, images 3, 9")
    with pytest.raises(OutOfMemoryError, match=message) as caught, where:
        torch.empty(1 << 50)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__
    with pytest.raises(RuntimeError, match="another"), memory.out_of_memory_as_error("here"):
        raise RuntimeError("another")


def give_back_freed_memory() -> None:
    """To the system: malloc may keep the memory that earlier tests have freed resident, and use it again."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def test_the_peak_restarts() -> None:
    give_back_freed_memory()
    memory.restart_peak(CPU)
    start = memory.peak_bytes(CPU)
    torch.ones(64 << 18)  # 64 MiB, freed at once
    first = memory.peak_bytes(CPU)
    assert 60 << 20 < first - start < 100 << 20
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not let a process restart its peak")
    give_back_freed_memory()
    memory.restart_peak(CPU)
    assert memory.peak_bytes(CPU) < first - (50 << 20)


def test_format_bytes() -> None:
    assert memory.format_bytes(12_025_908_429) == "11.2 GiB"
    assert memory.format_bytes(5 << 20) == "5 MiB"
