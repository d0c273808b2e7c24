"""Work that may end its process, such as an allocation that some library does not check: done in a copy of it."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import torch

T = TypeVar("T")
CAN_FORK = sys.platform == "linux"  # elsewhere the libraries that torch computes with do not outlive a fork
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class ChildKilled(Exception):
    """A signal has ended the copy."""

    def __init__(self, number: int) -> None:
        super().__init__(f"its process was ended by {signal.Signals(number).name}")


class ChildFailed(Exception):
    """The copy has come to an end without an answer: what it raised, this process can see only by trying itself."""


def in_child(work: Callable[[], T]) -> T:
    """What `work` returns, done on the CPU by a copy of this process; of what it changes, nothing is seen here.

    The copy has one thread, this one, and goes when this process goes. Raises ChildKilled, ChildFailed.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _answer_and_exit(work, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        raise ChildKilled(-code)
    if code > 0:
        raise ChildFailed
    return pickle.loads(answer)


def _answer_and_exit(work: Callable[[], object], writing: int) -> None:
    """Nothing is flushed and nothing cleaned up on the way out: all of it belongs to the parent."""
    code = 1
    faulthandler.disable()  # the parent says what happened
    with suppress(BaseException):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        torch.set_num_threads(1)  # those of the parent do not exist here
        answer = pickle.dumps(work())
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(answer)
        code = 0
    os._exit(code)
