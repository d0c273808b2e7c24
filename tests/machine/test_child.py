"""Work in a copy of the process: its answer comes back, its end by a signal is told, and it never outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fovea_detr.machine.child import CAN_FORK, ChildFailed, ChildKilled, in_child
from tests.launch import ROOT

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="torch does not outlive a fork here")


def test_the_answer_comes_back_and_changes_do_not() -> None:
    seen: list[int] = []

    def work() -> tuple[int, int, str]:
        seen.append(1)
        return len(seen), torch.get_num_threads(), "x" * 100_000  # more than a pipe holds at a time

    assert in_child(work) == (1, 1, "x" * 100_000)
    assert seen == []


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_signal_is_named(number: signal.Signals) -> None:
    with pytest.raises(ChildKilled, match=number.name):
        in_child(lambda: os.kill(os.getpid(), number))


@pytest.mark.parametrize("work", [lambda: 1 / 0, lambda: sys.exit(0), lambda: lambda: None])
def test_an_end_without_an_answer_is_told(work, capfd: pytest.CaptureFixture[str]) -> None:
    """An error, an exit, what cannot be sent; none of it writes anything, or runs what the parent has still to do."""
    with pytest.raises(ChildFailed):
        in_child(work)
    assert capfd.readouterr() == ("", "")


PARENT = """
import os, time, torch
from fovea_detr.machine.child import in_child
torch.set_num_threads(2)
a = torch.ones(500, 500, requires_grad=True)
(a @ a).sum().backward()  # torch's own threads exist before the fork
def work():
    b = torch.ones(500, 500, requires_grad=True)
    (b @ b).sum().backward()
    print(os.getpid(), flush=True)
    time.sleep(600)
in_child(work)
"""


def test_it_computes_beside_the_parents_threads_and_goes_when_the_parent_goes() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = Path("/proc") / parent.stdout.readline().strip()
    assert child.is_dir()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child)


def is_alive(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
