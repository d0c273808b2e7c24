"""The process that takes a test cluster down when the tests are killed, with a stub of the cluster."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.study.conftest import ROOT

STUB = '#!/bin/sh\n[ "$1" = up ] || rm -r "$FOVEA_SLURM_DIR"\n'
TESTS = """
import pathlib, shutil, sys, time
from tests.study import conftest
conftest.CLUSTER, shutil.which = pathlib.Path(sys.argv[1]), lambda name: name
cluster = conftest.start_cluster(0)
print(next(cluster)["FOVEA_SLURM_DIR"], flush=True)
time.sleep(60)
"""


def test_a_cluster_whose_tests_are_killed_is_taken_down(tmp_path: Path) -> None:
    stub = tmp_path / "cluster.sh"
    stub.write_text(STUB)
    tests = subprocess.Popen([sys.executable, "-c", TESTS, str(stub)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert tests.stdout is not None
    folder = Path(tests.stdout.readline().strip())
    assert folder.is_dir()
    tests.send_signal(signal.SIGKILL)
    tests.wait()
    end = time.monotonic() + 20
    while folder.exists():
        assert time.monotonic() < end, f"{folder} is still there"
        time.sleep(0.1)
