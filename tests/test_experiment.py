"""Runs as a user starts them: unusual data sets, one-line errors, and the run folder afterwards."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fovea_detr.build import build_data
from fovea_detr.compose import load_config
from fovea_detr.machine import device
from fovea_detr.predict.__main__ import main as predict
from fovea_detr.runs.folder import RunFolder
from fovea_detr.training.announce import announce, data_line
from tests.data.builders import annotation_path, box, edit, image_path, write_awkward, write_coco
from tests.launch import only_folder, run, run_well
from tests.training.test_preflight import new_trainer

pytestmark = pytest.mark.slow

ONE_EPOCH = ("experiment=tiny", "schedule.epochs=1")


def own_data(root: Path, runs: Path) -> tuple[str, ...]:
    """A user's data set in COCO's layout: read from disk, with worker processes and the published augmentation."""
    return (*ONE_EPOCH, "data=coco", "data.workers=1", "schedule.batch_size=1", f"data.root={root}", f"runs={runs}")


@pytest.mark.parametrize(("ranks", "bucketing"), [(1, "false"), (2, "true")])
def test_awkward_data_set_trains_and_evaluates(tmp_path: Path, ranks: int, bucketing: str) -> None:
    root = write_awkward(tmp_path / "awkward")
    run_well(*own_data(root, tmp_path), f"data.bucketing={bucketing}", "schedule.batch_size=2", ranks=ranks)
    folder = only_folder(tmp_path)
    result = folder.result()
    assert result is not None
    assert result["last"]["AP_by_category"].keys() == {"three", "seven", "ninety"}
    assert 0 < folder.history()[0]["timing"]["padding_share"] < 1
    assert "num_classes: 91" in (folder.config_text() or "")
    assert folder.state()["state"] == "done"  # type: ignore[index]


def test_images_without_any_object_train(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "empty", annotations=[box(1, 1, (4, 4, 10, 10))])
    edit(root, lambda content: content["annotations"].clear())
    out = run_well(*own_data(root, tmp_path), ranks=2)
    assert "l1 0.000, giou 0.000" in out


def test_the_first_line_of_a_run_names_its_data(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data", images=[(96, 64)] * 8, categories={1: "cat", 2: "dog"})
    own = ("experiment=own", f"data.root={root}", "data.long_side=96", "schedule.epochs=1", f"runs={tmp_path}")
    text = "images, 2 classes (cat, dog), at most 96 px"
    first, second = run_well(*own).splitlines()[:2]
    assert first.endswith(f"] data: coco, {root}: 8 + 8 {text}")
    train, val = (
        f"{split}: COCO 2017, {annotation_path(root, split)}, images in {root}/{split}2017"
        for split in ("train", "val")
    )
    assert second.endswith(f"] {train}; {val}")
    weights = f"weights={only_folder(tmp_path, 'own').checkpoint_path}"
    evaluated = run_well(*own, "mode=eval", weights, "study=eval")
    told, first = evaluated.splitlines()[:2]
    assert told.startswith("from the checkpoint: ")
    assert first.endswith(f"] data: coco, {root}: 8 {text}")


@pytest.mark.parametrize(
    ("count", "shown"),
    [(1, "1 class (c0)"), (6, "6 classes (c0, c1, c2, c3, c4, c5)"), (80, "80 classes (c0, c1, c2, c3, c4, ...)")],
)
def test_the_line_about_the_data_names_at_most_six_classes(tmp_path: Path, count: int, shown: str) -> None:
    root = write_coco(tmp_path, images=[(300, 100), (50, 50)], categories={i: f"c{i}" for i in range(count)})
    config = load_config([f"data.root={root}", "data.recipe=tiny"])
    train, val = build_data(config)
    assert data_line(config, val, train) == f"data: coco, {root}: 2 + 2 images, {shown}, at most 128 px"


def test_flaws_stay_in_the_log_and_in_the_provenance(tmp_path: Path) -> None:
    """On two ranks, of which one reads the annotations; every image is decoded once before."""
    boxes = [box(1, 1, (4, 4, 10, 10))] * 99 + [box(2, 1, (4, 4, 0, 10))]
    root = write_coco(tmp_path / "flawed", annotations=boxes)
    out = run_well(*own_data(root, tmp_path), "data.check=full", ranks=2)
    flaw = "empty boxes: 1 left out (annotation 100 (image 000002.jpg, box [4, 4, 0, 10], category 1))"
    folder = only_folder(tmp_path)
    for text in (out, (folder.path / "train.log").read_text()):
        for line in (flaw, "1 of 2 images hold more objects than model.num_queries=20; "):
            assert text.count(f"warning: instances_train2017.json: {line}") == 1
    provenance = folder.provenance()
    assert provenance is not None
    (kept,) = provenance["data_flaws"]["train"]
    assert (kept["kind"], kept["fate"], kept["count"], len(kept["examples"])) == ("empty boxes", "left out", 1, 1)


def test_thin_images_train(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "thin", [(3000, 1), (1, 300), (1600, 16)], [box(1, 1, (100, 0, 900, 1))])
    run_well(*own_data(root, tmp_path), "data.recipe=tiny")


def test_no_validation_objects_and_too_few_images_are_named(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "few")
    edit(root, lambda content: content["annotations"].clear(), split="val")
    done = run(*own_data(root, tmp_path), "schedule.batch_size=3")
    assert "warning: instances_val2017.json: no objects" in done.stdout
    assert_one_line(done.returncode, done.stderr, "set schedule.batch_size=2")


def no_image(root: Path) -> None:
    image_path(root, 1).unlink()


def no_folder(root: Path) -> None:
    (root / "val2017").rename(root / "validation")


def truncated(root: Path) -> None:
    path = image_path(root, 2)
    path.write_bytes(path.read_bytes()[:-200])


def annotated(**changes: Any) -> Callable[[Path], None]:
    return lambda root: edit(root, lambda content: content["annotations"][0].update(changes))


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (no_folder, "val2017"),
        (no_image, "000001.jpg"),
        (truncated, "000002.jpg"),
        (annotated(bbox=[4, 4, 0, 10]), "000001.jpg"),
        (annotated(bbox=[30, 4, 20, 10]), "000001.jpg"),
        (annotated(bbox=[float("nan"), 4, 8, 10]), "nan"),
        (annotated(category_id=77), "77"),
    ],
)
def test_broken_data_is_a_one_line_error(tmp_path: Path, break_it: Callable[[Path], None], named: str) -> None:
    root = write_coco(tmp_path / "broken")
    break_it(root)
    done = run(*own_data(root, tmp_path))
    assert_one_line(done.returncode, done.stderr, named)
    state = only_folder(tmp_path).state()
    assert state is not None
    assert state["state"] == "failed"
    assert named.lower() in state["reason"].lower()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("data=coco",), "data.root is not set"),
        (("data=coco", "data.root=nowhere"), "nowhere"),
        (("device=cuda",), "device=cuda"),
        (("model=detr_r50", "model.position=learned", "weights=README.md"), "README.md"),
        (("model=fovea_r50", "model.backbone=resnet18", "data.train_images=16", "data.val_images=4"), "resnet18"),
    ],
)
def test_other_errors_in_one_line(tmp_path: Path, overrides: tuple[str, ...], named: str) -> None:
    if "device=cuda" in overrides and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    cache = () if "data=coco" in overrides else (f"data.cache={tmp_path / 'cache'}",)
    done = run(*ONE_EPOCH, *overrides, f"runs={tmp_path}", *cache)
    assert_one_line(done.returncode, done.stderr, named)


def assert_one_line(code: int, stderr: str, named: str) -> None:
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert code == 2, stderr
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    assert named.lower() in lines[0].lower()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], RunFolder]:
    """A finished run of one epoch: the overrides that made it, and its folder."""
    runs = tmp_path_factory.mktemp("finished")
    small = (*ONE_EPOCH, "data.train_images=32", "data.val_images=8", f"data.cache={runs / 'cache'}", f"runs={runs}")
    run_well(*small)
    return small, only_folder(runs)


def test_the_same_command_again_prints_done(finished: tuple[tuple[str, ...], RunFolder]) -> None:
    overrides, folder = finished
    before = folder.checkpoint_path.stat().st_mtime_ns
    assert "done already: AP " in run_well(*overrides)
    assert folder.checkpoint_path.stat().st_mtime_ns == before


def test_a_changed_configuration_is_refused_with_the_difference(finished: tuple[tuple[str, ...], RunFolder]) -> None:
    overrides, folder = finished
    text = folder.config_text()
    assert text is not None
    folder.write_config(text.replace("smooth: 4.0", "smooth: 6.0"))
    done = run(*overrides)
    folder.write_config(text)
    assert_one_line(done.returncode, done.stderr, "fovea.smooth: 6 -> 4")
    assert folder.state()["state"] == "done"  # type: ignore[index]


def test_a_folder_in_use_is_refused(finished: tuple[tuple[str, ...], RunFolder]) -> None:
    overrides, folder = finished
    result = folder.path / "result.json"
    content = result.read_text()
    result.unlink()
    with (folder.path / ".lock").open("ab") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        done = run(*overrides)
    result.write_text(content)
    assert_one_line(done.returncode, done.stderr, "another process")


def test_finetune_with_other_classes_and_eval(finished: tuple[tuple[str, ...], RunFolder], tmp_path: Path) -> None:
    _, folder = finished
    root = write_coco(tmp_path / "other", images=[(128, 96)] * 8, categories=(3, 9))
    mine = ("data=coco", "data.recipe=tiny", f"data.root={root}", f"runs={tmp_path}")
    mine += (f"weights={folder.checkpoint_path}",)
    out = run_well(*ONE_EPOCH, *mine, "schedule.batch_size=4")
    assert "skipped class_head.weight" in out
    refused = run(*ONE_EPOCH, *mine, "mode=eval", "study=eval")
    assert_one_line(refused.returncode, refused.stderr, "class_head")


def test_a_checkpoint_alone_evaluates_what_was_trained(
    finished: tuple[tuple[str, ...], RunFolder], tmp_path: Path
) -> None:
    """The default model and smooth are other ones. AP and detections are those of the run's last evaluation."""
    (*_, cache, _), folder = finished
    alone = ("mode=eval", f"weights={folder.checkpoint_path}", f"runs={tmp_path}", cache, "data.workers=0")
    out = run_well(*alone, "data=shapes", "data.train_images=32", "data.val_images=8")
    assert "fovea.smooth=4" in out
    evaluated = only_folder(tmp_path, "default")
    assert evaluated.result()["last"] == folder.result()["last"]  # type: ignore[index]
    assert "done already" in run_well(*alone, "data=shapes", "data.train_images=32", "data.val_images=8")
    refused = run(*alone, "smooth=16", "mixture=head")
    assert_one_line(refused.returncode, refused.stderr, "fovea.smooth=4 (the command has 16), mixture=none")


@pytest.mark.parametrize("loss", ["focal", "softmax"])
def test_the_number_of_classes_is_that_of_both_splits(tmp_path: Path, loss: str) -> None:
    root = write_coco(tmp_path / "more", [(64, 48)] * 4, categories=(1, 2, 3, 4, 5), splits=("train",))
    write_coco(root, [(64, 48)] * 2, categories=(1, 2), splits=("val",))
    run_well(*own_data(root, tmp_path), f"model.loss={loss}")
    folder = only_folder(tmp_path)
    assert torch.load(folder.checkpoint_path)["model"]["class_head.weight"].shape[0] == 7
    assert folder.result()["last"]["AP_by_category"].keys() == {"category1", "category2"}  # type: ignore[index]


def test_a_set_number_of_classes_counts(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "set", [(64, 48)] * 2)
    mine = own_data(root, tmp_path)
    for _ in range(2):
        out = run_well(*mine, "data.num_classes=91")
    assert "done already" in out
    assert torch.load(only_folder(tmp_path).checkpoint_path)["model"]["class_head.weight"].shape[0] == 92
    assert "done already" not in run_well(*mine)  # 3 classes: another run
    assert "done already" in run_well(*mine, "data.num_classes=3")
    refused = run(*mine, "data.num_classes=2")
    assert_one_line(refused.returncode, refused.stderr, "data.num_classes=2, but the category ids")


@pytest.mark.parametrize("ids", [(7, 20231115), (-1, 0)])
def test_huge_and_negative_category_ids_train_and_come_back(tmp_path: Path, ids: tuple[int, int]) -> None:
    root = write_coco(tmp_path / "odd", [(64, 48)] * 4, categories=dict(zip(ids, ("car", "bus"), strict=True)))
    run_well(*own_data(root, tmp_path), "evaluation.save_predictions=true")
    folder = only_folder(tmp_path)
    saved = torch.load(folder.checkpoint_path)
    assert (saved["model"]["class_head.weight"].shape[0], saved["categories"]) == (3, {0: "car", 1: "bus"})
    assert saved["category_ids"] == {0: ids[0], 1: ids[1]}
    assert predict([str(folder.path), str(root / "val2017"), "--to", str(tmp_path / "to"), "--threshold", "0"]) == 0
    found = json.loads((tmp_path / "to" / "predictions.json").read_text())
    assert found
    assert {(one["category_id"], one["name"]) for one in found} <= {(ids[0], "car"), (ids[1], "bus")}
    predictions = json.loads((folder.path / "predictions.json").read_text())
    assert {one["category_id"] for one in predictions} <= {*ids}
    assert folder.result()["last"]["AP_by_category"].keys() == {"car", "bus"}  # type: ignore[index]


def test_a_finished_run_gets_its_predictions_from_its_checkpoint(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data", [(64, 48)] * 4)
    run_well(*own_data(root, tmp_path / "calm"), "evaluation.save_predictions=true")
    mine = own_data(root, tmp_path / "later")
    run_well(*mine)
    folder, expected = (only_folder(tmp_path / name) for name in ("later", "calm"))
    before = {name: (folder.path / name).read_bytes() for name in ("result.json", "provenance.json", "matches.npz")}
    assert not (folder.path / "predictions.json").exists()
    for ranks in (1, 2):  # it was trained by one
        assert "as in result.json" in run_well(*mine, "evaluation.save_predictions=true", ranks=ranks)
        assert (folder.path / "predictions.json").read_bytes() == (expected.path / "predictions.json").read_bytes()
        assert folder.record()["state"] == "done"
        assert {name: (folder.path / name).read_bytes() for name in before} == before
        assert "as in result.json" not in run_well(*mine, "evaluation.save_predictions=true")
        (folder.path / "predictions.json").unlink()
    result = folder.result() or {}
    folder.write_result({**result, "last": {**result["last"], "AP": result["last"]["AP"] + 0.01}})
    refused = run(*mine, "evaluation.save_predictions=true")
    assert_one_line(refused.returncode, refused.stderr, "its checkpoint has AP ")
    folder.checkpoint_path.unlink()
    refused = run(*mine, "evaluation.save_predictions=true")
    assert_one_line(refused.returncode, refused.stderr, "its predictions.json cannot be made")
    assert not (folder.path / "predictions.json").exists()


def test_non_finite_losses_stop_the_run_and_name_the_images(
    finished: tuple[tuple[str, ...], RunFolder], tmp_path: Path
) -> None:
    overrides, folder = finished
    content = torch.load(folder.checkpoint_path)
    content["model"]["box_head.layers.2.bias"].fill_(float("nan"))
    torch.save(content["model"], tmp_path / "nan.pt")
    done = run(*overrides, f"weights={tmp_path / 'nan.pt'}", f"runs={tmp_path}")
    assert_one_line(done.returncode, done.stderr, "step 0, rank 0, images ")
    assert "not finite" in done.stderr
    state = only_folder(tmp_path).state()
    assert state is not None
    assert (state["state"], state["kind"]) == ("failed", "NonFiniteError")


@pytest.mark.parametrize(("size", "warned", "lower"), [(4, True, False), (8, False, False), (16, True, True)])
def test_another_total_batch_than_the_recipes_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int, warned: bool, lower: bool
) -> None:
    announce(new_trainer(tmp_path, f"schedule.batch_size={size}"))
    out = capsys.readouterr().out
    assert (f"warning: the total batch is {size}, the recipe's is 8: results are not comparable" in out) == warned
    assert ("AP is usually lower with larger batches" in out) == lower


@pytest.mark.parametrize(
    ("precision", "flags", "warned"),
    [("bf16", "avx512f", True), ("bf16", "avx512f avx512_bf16", False), ("fp32", "avx512f", False)],
)
def test_bf16_on_a_cpu_without_its_instructions_is_a_warning(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    flags: str,
    warned: bool,
) -> None:
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"flags : {flags}\n")
    monkeypatch.setattr(device, "CPU_FACTS", facts)
    announce(new_trainer(tmp_path, f"precision={precision}"))
    assert ("no bfloat16 instructions: precision=fp32 is faster" in capsys.readouterr().out) == warned


def test_tensorboard_when_configured(tmp_path: Path) -> None:
    small = ("data.train_images=16", "data.val_images=4", f"data.cache={tmp_path / 'cache'}", f"runs={tmp_path}")
    run_well(*ONE_EPOCH, *small, "tracker=tensorboard", "precision=bf16")
    folder = only_folder(tmp_path)
    assert list((folder.path / "tensorboard").glob("events*"))
