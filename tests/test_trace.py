"""The losses of the first 300 steps of `experiment=tiny`, as they were before its parts were made faster."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import pytest

from fovea_detr import experiment
from fovea_detr.config import load_config
from fovea_detr.lifecycle import Run

TRACE = json.loads((Path(__file__).parent / "golden" / "tiny_loss_trace.json").read_text())


class Enough(Exception):
    pass


@pytest.mark.slow
def test_the_losses_are_those_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal, byte for byte, where the trace was recorded (torch 2.15, AVX-512). Training is chaotic: a difference of
    1e-7 is one of 1e-5 after 20 steps, so on another machine only the beginning and the course can be compared."""
    losses: list[float] = []

    def add(_: Run, values: dict[str, float]) -> None:
        losses.append(values["loss"])
        if len(losses) == len(TRACE):
            raise Enough

    monkeypatch.setattr(Run, "_add", add)
    with pytest.raises(Enough):
        experiment.run(load_config(["experiment=tiny", f"runs={tmp_path}"]), "point")
    assert losses[:10] == pytest.approx(TRACE[:10], rel=1e-5)
    assert mean(losses[200:]) == pytest.approx(mean(TRACE[200:]), rel=0.05)
