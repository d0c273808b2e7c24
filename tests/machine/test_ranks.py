"""Several gloo ranks: the same AP for any number of ranks, and COCO's own numbers from the saved predictions.

The saved predictions are equal byte for byte: what is gathered, and its order, do not depend on the ranks.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.multiprocessing.spawn import spawn

from fovea_detr.machine import distributed
from fovea_detr.runs.folder import METRICS
from tests.launch import only_folder, run_well
from tests.predictions import TWELVE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with 23 validation images, which 2 ranks, 3 ranks and batches of 4 do not divide."""
    runs = tmp_path_factory.mktemp("ranks")
    run_well(*arguments(runs), "schedule.epochs=4", "data.train_images=320", f"runs={runs}")
    return runs


def arguments(runs: Path) -> list[str]:
    return ["experiment=tiny", "data.val_images=23", "evaluation.batch_size=4", f"data.cache={runs / 'cache'}"]


def test_any_number_of_ranks_gives_the_same_metrics(trained: Path) -> None:
    weights = only_folder(trained).checkpoint_path
    results, saved = [], set()
    for ranks in (1, 2, 3):
        study = f"ranks{ranks}"
        evaluate = ("mode=eval", f"weights={weights}", "data.train_images=320", "evaluation.save_predictions=true")
        run_well(*arguments(trained), *evaluate, f"runs={trained}", f"study={study}", ranks=ranks)
        folder = only_folder(trained, study)
        results.append(folder.result()["last"])  # type: ignore[index]
        predictions = json.loads((folder.path / "predictions.json").read_text())
        saved.add((folder.path / "predictions.json").read_bytes())
        assert len(predictions) == 23 * 20, "20 detections from each of the 23 images, once"
        assert_equal_to_pycocotools(results[-1], folder.path / "predictions.json", trained)
    assert results[0]["AP"] > 0
    assert len(saved) == 1
    assert results[1:] == results[:1] * 2


def test_pycocotools_gives_the_same_result(trained: Path) -> None:
    evaluate = ("mode=eval", f"weights={only_folder(trained).checkpoint_path}", "data.train_images=320")
    run_well(*arguments(trained), *evaluate, f"runs={trained}", "study=ours")
    run_well(*arguments(trained), *evaluate, f"runs={trained}", "study=pycocotools", "evaluation.backend=pycocotools")
    ours, theirs = (only_folder(trained, study).result()["last"] for study in ("ours", "pycocotools"))  # type: ignore[index]
    assert [ours[name] for name in METRICS] == pytest.approx([theirs[name] for name in METRICS], rel=0, abs=1e-12)
    assert ours["AP_by_category"] == pytest.approx(theirs["AP_by_category"], rel=0, abs=1e-12)


LENGTHS = ((3, 0, 2), (0, 0, 0), (1, 1, 1))


def test_gather_rows_with_different_numbers_of_rows(tmp_path: Path) -> None:
    """Three real ranks; one has no rows, all have none."""
    spawn(_gather_and_check, (tmp_path / "store",), nprocs=3)


def _gather_and_check(rank: int, store: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    for lengths in LENGTHS:
        parts = [rows_of(other, length) for other, length in enumerate(lengths)]
        for ours in parts, [part[:, 0].long() for part in parts]:
            assert torch.equal(distributed.gather_rows(ours[rank]), torch.cat(ours)), (rank, lengths)
    torch.distributed.destroy_process_group()


def test_once_per_node_calls_on_one_rank_and_copies_its_value(tmp_path: Path) -> None:
    """None is a value like any other: with it the first rank does not call again, while others read its file."""
    spawn(_read_once_and_check, (tmp_path,), nprocs=3)
    assert (tmp_path / "calls").read_text() == "00"


def _read_once_and_check(rank: int, folder: Path) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=3)

    def read(value: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor] | None:
        with (folder / "calls").open("a") as file:
            file.write(str(rank))
        return value

    found = distributed.once_per_node(lambda: read({"rows": rows_of(0, 5)}))
    assert found is not None
    assert torch.equal(found["rows"], rows_of(0, 5))
    assert distributed.once_per_node(lambda: read(None)) is None
    torch.distributed.destroy_process_group()


def rows_of(rank: int, length: int) -> torch.Tensor:
    """Numbers that float32 cannot represent."""
    return torch.arange(6.0 * length, dtype=torch.float64).reshape(-1, 6) + 2**40 + rank / 3


def assert_equal_to_pycocotools(metrics: dict[str, float], predictions: Path, runs: Path) -> None:
    (annotations,) = (runs / "cache").rglob("instances_val2017.json")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(predictions)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    for name, value in zip(TWELVE, evaluation.stats, strict=True):
        assert metrics[name] == pytest.approx(float(value), abs=1e-12)
