"""Peaks, limits, and what "out of memory" looks like, from the allocators that say it."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from fovea_detr.errors import OutOfMemoryError
from fovea_detr.machine import memory

CPU = torch.device("cpu")


def test_torch_own_error_is_known_and_others_are_not() -> None:
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


def test_a_shortage_is_one_line_that_says_where() -> None:
    said = r"^step 7, rank 1, images 3, 9: out of memory, .*allocate"
    where = memory.shortage_named("step 7, rank 1, images 3, 9")
    with pytest.raises(OutOfMemoryError, match=said) as caught, where:
        torch.empty(1 << 50)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__
    with pytest.raises(RuntimeError, match="another"), memory.shortage_named("here"):
        raise RuntimeError("another")


def test_the_peak_begins_anew() -> None:
    memory.release(CPU)  # what earlier tests have freed, malloc may keep resident and hand out again
    memory.restart_peak(CPU)
    start = memory.peak_bytes(CPU)
    torch.ones(64 << 18)  # 64 MiB, and gone
    first = memory.peak_bytes(CPU)
    assert 60 << 20 < first - start < 100 << 20
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not let a process restart its peak")
    memory.release(CPU)
    memory.restart_peak(CPU)
    assert memory.peak_bytes(CPU) < first - (50 << 20)


def test_a_process_own_limit_counts() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    unlimited = memory.limit_bytes(CPU)
    resource.setrlimit(resource.RLIMIT_DATA, (unlimited - 4096, before[1]))
    limited = memory.limit_bytes(CPU)
    resource.setrlimit(resource.RLIMIT_DATA, before)
    assert limited == unlimited - 4096


@pytest.mark.parametrize(
    ("line", "files", "limits"),
    [
        ("0::/a/b", {"a/memory.max": "7000", "a/b/memory.max": "max", "memory.max": "9000"}, {7000, 9000}),
        ("0::/", {}, set()),
        ("4:memory:/job", {"memory/job/memory.limit_in_bytes": "5000", "other/memory.limit_in_bytes": "1"}, {5000}),
        ("3:cpuset:/job", {"cpuset/job/memory.max": "1"}, set()),
    ],
)
def test_limits_of_control_groups(tmp_path: Path, line: str, files: dict[str, str], limits: set[int]) -> None:
    own = tmp_path / "own"
    own.write_text(f"{line}\n")
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    assert set(memory.cgroup_limits(tmp_path / "groups", own)) == limits


def test_sizes_for_people() -> None:
    assert memory.shown(12_025_908_429) == "11.2 GiB"
    assert memory.shown(5 << 20) == "5 MiB"
