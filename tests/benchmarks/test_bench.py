"""The benchmark code: counts and targets, both sides on small sizes, the table and its files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import backbone, bench, core, criterion, evaluation, gpu, growth, masks, step, tiny
from benchmarks.measure import GIVEN_BACK, MIB, fresh, host_reads, operations, peak_bytes
from benchmarks.report import NO_REASON, Row, cells, machine, markdown, store
from fovea_detr.model.backbone import build_backbone

SMALL: dict[str, Any] = {"rows": 4, "columns": 6, "queries": 5}


@pytest.mark.parametrize("kind", list(core.TYPES))
@pytest.mark.parametrize("what", ["core", "layer"])
def test_both_sides_of_the_attention_compute_the_same(kind: str, what: str) -> None:
    case = core.build(kind, **SMALL)
    outputs, gradients = [], []
    for side in ("ours", "plain"):
        outputs.append(getattr(case, f"{what}_{side}")())
        outputs[-1].square().sum().backward()
        leaves = [case.content, *((case.q, case.k, case.v, case.centres) if what == "core" else (case.memory,))]
        gradients.append([leaf.grad.clone() for leaf in leaves if leaf.grad is not None])
        for leaf in leaves:
            leaf.grad = None
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)


def test_both_sides_of_the_mask_head_compute_the_same() -> None:
    case = masks.Heads(9, size_hw=(64, 96))
    torch.testing.assert_close(case.ours(), case.plain(), rtol=1e-5, atol=1e-6)
    for ours, plain in ((case.attention, case.plain_attention), (case.head, case.plain_head)):
        theirs = dict(plain.named_parameters())
        largest = max(float(p.grad.abs().max()) for p in theirs.values() if p.grad is not None)
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("loss", ["focal", "softmax"])
def test_both_sides_of_the_criterion_compute_the_same(loss: str) -> None:
    case = criterion.Losses(loss, batch=2)
    torch.testing.assert_close(case.ours(), case.plain(), rtol=1e-4, atol=1e-4)


def test_both_sides_of_a_step_have_the_same_loss() -> None:
    sides = step.Sides(step.TINY, (64, 96), 2)
    sides.ours()
    assert sides.loss_of_ours() == pytest.approx(sides.plain(), rel=1e-4)


def test_reads_of_the_published_step_are_those_of_its_code() -> None:
    """12 comparisons of inputs, 31 in criterion and matcher, 44 for the log; ours is the copy of the costs."""
    (row,) = step.read_rows()
    assert row["plain"] == 12 + 31 + 44
    assert row["ours"] == 1


def test_both_sides_of_the_backbone_compute_the_same() -> None:
    ours = build_backbone("resnet50", dc5=False, batch_norm="frozen")
    plain, images = backbone.Plain(ours), torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    features, theirs = ours(images), plain(images)
    assert (features - theirs).abs().max() < 1e-5 * theirs.abs().max()
    taken = backbone.measured(plain, ours, images, "fp32", 1, [True])
    assert taken.keys() == {"plain", "folded, channels last"}
    assert min(taken.values()) > 0


def test_both_sides_of_the_evaluation_find_the_same() -> None:
    """The row raises if the metrics differ."""
    row = evaluation.row("a part", images=30, per_image=100, runs=1)
    assert row["plain"] > 0
    assert row["ours"] > 0


def test_the_optimizers_row_has_the_share_of_its_kernel() -> None:
    (row,) = step.optimizer_rows(1)
    assert re.match(r"\d+% of the step is torch's fused kernel", row["below"])


def test_host_reads_and_operations_count() -> None:
    x = torch.ones(3)
    assert host_reads(lambda: (x.sum().item(), x.tolist(), bool(x[0] > 0), x.cpu())) == 4
    assert host_reads(lambda: x.cpu().tolist()) == 1  # the list is made from a host tensor
    counted = operations(lambda: (x + 1).view(3, 1))
    assert (counted.all, counted.kernels) == (2, 1)


def test_a_peak_counts_simultaneous_blocks() -> None:
    found = fresh("tests.benchmarks.test_bench:_peak_of_two_pairs", GIVEN_BACK)
    assert 75 < found < 100


def _peak_of_two_pairs() -> float:
    """MiB of two simultaneous blocks of 40 MiB, twice, one pair after the other."""
    torch.ones(1).add(1)

    def pair() -> None:
        torch.ones(40 * MIB, dtype=torch.uint8).add_(torch.ones(40 * MIB, dtype=torch.uint8))

    return peak_bytes(lambda: (pair(), pair())) / MIB


def test_rows_below_the_prototype_carry_a_reason() -> None:
    assert NO_REASON in Row("a", ratio=1.9, prototype=2.0).notes()
    assert Row("a", ratio=1.9, prototype=2.0, below="because").notes() == "because"
    assert Row("a", ratio=2.1, prototype=2.0, below="because").notes() == ""
    assert (
        "because" in Row("a", ratio=3.0, prototype=2.0, memory=[100, 51], memory_prototype=0.5, below="because").notes()
    )


def test_targets_limits_and_failures_are_wrong() -> None:
    assert "the target is 2" in Row("a", ratio=1.9, target=2.0).wrong()
    assert "the limit is 1" in Row("a", ours=2, limit=1).wrong()
    assert "broken" in Row("a", failed="broken").wrong()
    assert not Row("a", ratio=2.0, target=2.0, ours=1, limit=1).wrong()
    assert not Row("a", skipped="no GPU").wrong()


def test_a_part_that_fails_is_a_row() -> None:
    def broken() -> list:
        raise ValueError("no such thing\nand more")

    (row,) = bench.measured("part", broken)
    assert row.failed == "ValueError: no such thing"


def test_the_table_is_stored_for_people_and_programs(tmp_path: Path) -> None:
    rows = [Row("a part", 2.0, 1.0, "ms", 2.0, "a note", prototype=1.5, memory=[10, 5]), Row("b", skipped="no GPU")]
    store(
        tmp_path / "results" / "cpu", rows, [{"over": "cells", "x": 1, "plain": 2, "ours": 1, "unit": "ms"}], machine()
    )
    text = (tmp_path / "results" / "cpu.md").read_text()
    assert markdown(rows) in text
    assert "skipped: no GPU" in text
    assert "cpu.png" in text
    stored = json.loads((tmp_path / "results" / "cpu.json").read_text())
    assert stored["rows"][0]["ratio"] == 2.0
    assert stored["machine"]["versions"]["torch"]
    assert len(cells(rows[0])) == len(cells(rows[1]))


def test_the_figure_has_one_axis_per_quantity(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = [
        {"over": over, "x": x, "plain": 2 * x, "ours": x, "unit": "ms"} for over in ("cells", "ranks") for x in (1, 2)
    ]
    growth.draw(points, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_covered_time_is_that_of_the_union() -> None:
    assert gpu.covered([]) == 0
    assert gpu.covered([(5, 6), (0, 2), (1, 3), (1.5, 1.7)]) == 4


def test_gpu_rows_are_skipped_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = [Row(**row) for row in gpu.rows(runs=1)]
    assert len(rows) == 7
    assert all(row.notes() == "skipped: no GPU" for row in rows)


def test_the_gpu_measurements_run_on_a_cpu_too() -> None:
    sides = step.Sides([*step.TINY, "precision=bf16"], (64, 96), 2)
    (throughput,) = gpu.throughput_rows(sides, runs=1, steps=1)
    assert throughput["ours"] > 0
    kernels, busy = gpu.profile_rows(sides)
    assert (kernels["ours"], busy["ours"]) == (0, 0)  # no GPU events
    assert gpu.sync_rows(sides)[0]["limit"] == 1
    (attention,) = gpu.attention_rows(1, "cpu", **SMALL)
    assert 0 < attention["ours"] < 100
    (inference,) = gpu.inference_rows(step.TINY, (64, 96), 3, "cpu")
    assert inference["ratio"] > 0


@pytest.mark.slow
def test_the_tiny_experiment_runs_on_both_sides() -> None:
    found = tiny.rows(1, 16, 8, ("schedule.epochs=2",))
    assert [row["part"].split(", ")[1] for row in found] == ["training", "the whole run", "processor time"]
    assert all(row["plain"] > 0 and row["ours"] > 0 for row in found)
