"""The reason of a run that could write none itself is the last line of its logs that tells a cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from fovea_detr.runs.last_error import last_error

START = "[base] job 5_0, restart 0, 2 ranks\n"
NO_SPACE = "Traceback (most recent call last):\n  File 'x', line 3\nOSError: [Errno 28] No space left on device\n"
EXITED = "srun: error: fovea0: tasks 0-1: Exited with exit code 2\n"
PEER = "RuntimeError: [../gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]:3456\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (START + "error: runs/s/base: a total batch of 2 images, now it would be 4\n" + EXITED, "runs/s/base: a total"),
        (START + NO_SPACE + EXITED, "OSError: [Errno 28] No space left on device"),
        ("slurmstepd: error: execve(): /gone/python: No such file or directory\n" + EXITED, "execve(): /gone/python: "),
        ("/usr/bin/python3: No module named fovea_detr\n" + EXITED, "/usr/bin/python3: No module named fovea_detr"),
        ("/spool/job5/slurm_script: line 9: module: command not found\n", "/spool/job5/slurm_script: line 9: module"),
        (START + "slurmstepd: error: Detected 1 oom_kill event in StepId=5.0.\n" + EXITED, "Detected 1 oom_kill"),
        (
            START + "slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***\n",
            "*** JOB 5 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***",
        ),
        (START + NO_SPACE + PEER, "OSError: [Errno 28]"),
        (
            START + "slurmstepd: error: StepId=5.0 exceeded memory limit (1600 > 1536), being killed\n"
            "srun: error: fovea0: tasks 0-1: Killed\n",
            "StepId=5.0 exceeded memory limit",
        ),
        (START + EXITED, "fovea0: tasks 0-1: Exited with exit code 2"),
        (START + "[base] epoch 3/20: loss 2.1\n", ""),
        (NO_SPACE + START + "[base] epoch 3/20: loss 2.1\n", ""),
        (START + NO_SPACE + "[rank 0] stopped by SIGUSR2; requeued\n", ""),
        ("", ""),
    ],
)
def test_the_last_cause_is_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    log = tmp_path / "5_0_0_log.out"
    log.write_text(text)
    found = last_error([log])
    assert found.startswith(reason) if reason else found == ""
    assert "\n" not in found


def test_the_cause_on_another_rank_goes_before_the_loss_of_that_rank(tmp_path: Path) -> None:
    first, second = tmp_path / "5_0_0_log.out", tmp_path / "5_0_1_log.out"
    first.write_text(START + PEER)
    second.write_text(NO_SPACE)
    assert last_error([first, second, tmp_path / "missing"]).startswith("OSError: [Errno 28]")


def test_a_log_of_any_size_and_content_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\xff\x00 noise\r" * 200_000 + b"ValueError: \x1b[31mred\n")
    assert last_error([log]) == "ValueError:  [31mred"
