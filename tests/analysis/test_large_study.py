"""A study of 10,000 folders: limits on time and memory, and every broken folder is named."""

from __future__ import annotations

import pytest

from benchmarks.collect import measure
from tests.analysis.made_up import write_study


@pytest.mark.slow
def test_ten_thousand_folders(tmp_path):
    broken = write_study(tmp_path / "study", 10_000)
    seconds, peak_mib, text = measure(tmp_path)
    assert seconds < 5
    assert peak_mib < 200
    assert len(broken) > 150
    named = {line.partition(": ")[0] for line in text.splitlines() if line.startswith(str(tmp_path))}
    assert named == set(map(str, broken))
    table = [line for line in text.splitlines() if not line.startswith(str(tmp_path))]
    assert len(table) >= 10_000 / 3 / 2, "half of them are plain DETR, which reads no axis of the fovea"


@pytest.mark.slow
def test_a_small_study_is_complete(tmp_path):
    broken = write_study(tmp_path / "study", 90, broken_share=0.2)
    assert {path.parent.name for path in broken} == {"study"}
    _, _, text = measure(tmp_path)
    assert all(f"{path}: " in text for path in broken)
    assert sum(" ± " in line for line in text.splitlines()) > 20
