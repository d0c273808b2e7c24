"""`schedule.total_batch`: one recipe on any number of processes, by accumulated micro-batches."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from fovea_detr import assembly
from fovea_detr.compose import load_config
from fovea_detr.config.batching import Batching
from fovea_detr.data.loader import collate_images
from fovea_detr.errors import ConfigError, RunFolderError
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.identity import differences, refuse_other_batch
from fovea_detr.runs.points import Folders
from fovea_detr.runs.stored import Stored, config_text, settings_of
from fovea_detr.types import Batch, Target
from tests.launch import only_folder, run, run_well, start
from tests.model.builders import random_image
from tests.predictions import random_targets
from tests.training.test_resume import SIGNALS, assert_equal_runs, kill_while_training, without_timing
from tests.training.test_train_step import SmallTrainer

PARTS = 4


@pytest.mark.parametrize(
    ("processes", "text"),
    [
        (1, "1 process x 4 micro-batches x 4 images = total batch 16"),
        (2, "2 processes x 2 micro-batches x 4 images = total batch 16"),
        (4, "4 processes x 4 images = total batch 16"),
        (8, "8 processes x 2 images = total batch 16"),
        (16, "16 processes x 1 images = total batch 16"),
    ],
)
def test_the_published_recipe_is_one_on_any_number_of_processes(processes: int, text: str) -> None:
    assert str(Batching.of(load_config(), processes)) == text


def test_micro_batches_are_as_large_as_allowed_and_equal() -> None:
    assert Batching.of(load_config(["schedule.total_batch=12", "schedule.batch_size=5"]), 1) == Batching(1, 3, 4)
    assert Batching.of(load_config(["schedule.total_batch=7"]), 1) == Batching(1, 7, 1)
    assert Batching.of(load_config(["schedule.total_batch=null"]), 3) == Batching(3, 1, 4)


@pytest.mark.parametrize("processes", [3, 32])
def test_a_total_that_does_not_divide_is_one_line(processes: int) -> None:
    with pytest.raises(
        ConfigError, match=f"total_batch=16 cannot be shared equally by {processes} processes"
    ) as caught:
        Batching.of(load_config(), processes)
    assert "start one of 1, 2, 4, 8, 16 processes" in str(caught.value)


def test_an_evaluation_runs_on_any_number_of_processes(tmp_path: Path) -> None:
    (tmp_path / "a.pt").touch()
    assert Batching.of(load_config(["mode=eval", f"weights={tmp_path / 'a.pt'}"]), 3).micro_batches == 1


def test_a_total_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.total_batch=0 must be at least 1"):
        load_config(["schedule.total_batch=0"])


# ---- the gradient ----------------------------------------------------------------------------------------------------


def part(number: int) -> tuple[Batch, list[Target]]:
    """A micro-batch of two images, with sizes and numbers of objects of its own; the first one has no objects."""
    sizes = [(64, 32 * (number + 1)), (48, 64)]
    images = [random_image(*size, seed=10 * number + i) for i, size in enumerate(sizes)]
    return collate_images(images), random_targets(number, 2 * number, seed=number)


def gradients(folder: Path, overrides: tuple[str, ...], parts: list[tuple[Batch, list[Target]]]) -> dict[str, Any]:
    """The gradient and the report of one step on these micro-batches of this rank."""
    trainer = SmallTrainer(folder, "schedule.total_batch=8", "schedule.batch_size=2", "schedule.clip=0", *overrides)
    trainer.wrapped = assembly.wrap_for_ranks(trainer.config, trainer.state.model, trainer.device)
    assert trainer.batching.micro_batches == len(parts)
    trainer.train_step(*parts[0], 0, *parts[1:])
    trainer.reports.settle()
    found = {name: p.grad for name, p in trainer.state.model.named_parameters() if p.grad is not None}
    return {"gradients": found, "losses": trainer.reports.latest}


SETTINGS = [
    (f"model.loss={loss}", f"model.dropout={dropout}", "model.batch_norm=frozen")
    for loss in ("focal", "softmax")
    for dropout in (0, 0.1)
]


def on_rank(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=PARTS)
    found = [gradients(folder / f"{rank}-{i}", overrides, [part(rank)]) for i, overrides in enumerate(SETTINGS)]
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_four_micro_batches_have_the_gradient_of_four_ranks(tmp_path: Path) -> None:
    """With dropout, too: a micro-batch has the random numbers of the rank that it stands for."""
    spawn(on_rank, (tmp_path,), nprocs=PARTS)
    for i, ranks in enumerate(torch.load(tmp_path / "0.pt")):
        alone = gradients(tmp_path / f"alone-{i}", SETTINGS[i], [part(number) for number in range(PARTS)])
        assert ranks["gradients"].keys() == alone["gradients"].keys()
        largest = max(float(gradient.abs().max()) for gradient in ranks["gradients"].values())
        assert largest > 0.01
        for name, gradient in alone["gradients"].items():
            assert (gradient - ranks["gradients"][name]).abs().max() <= 1e-6 * max(1.0, largest), (SETTINGS[i], name)
        assert alone["losses"] == pytest.approx(ranks["losses"], rel=1e-5)


def test_accumulation_reads_once_more_per_micro_batch_and_names_all_images(tmp_path: Path) -> None:
    overrides = ("schedule.total_batch=4", "schedule.batch_size=2")
    trainer = SmallTrainer(tmp_path, *overrides)
    trainer.train_step(*part(1), 0, part(2))
    assert trainer.reports.pending is not None
    trainer.make_gradient_nan()
    trainer.end_step(0)
    before = trainer.weights()
    trainer.train_step(*part(1), 1, part(2))
    with pytest.raises(Exception, match=r"step 1, rank 0, images .*not finite"):
        trainer.reports.settle()
    assert all(torch.equal(value, before[name]) for name, value in trainer.weights().items())


# ---- which run it is -------------------------------------------------------------------------------------------------


def without_key(text: str) -> str:
    """As a version without the key has stored it."""
    lines = [line for line in text.splitlines() if not line.startswith("  total_batch:")]
    return "\n".join([line.replace("schedule.total_batch, ", "") for line in lines]) + "\n"


def test_a_folder_of_a_published_recipe_from_before_the_key_is_found(tmp_path: Path) -> None:
    config = load_config([])
    RunFolder(tmp_path / "old").path.mkdir()
    (tmp_path / "old" / "config.yaml").write_text(without_key(config_text(config)))
    assert Folders(tmp_path).name("base", config) == "old"
    assert settings_of(without_key(config_text(config))) == settings_of(config_text(config))
    assert Stored(without_key(config_text(config))).config() == config


@pytest.mark.parametrize("typed", ["experiment=tiny", "schedule.total_batch=null schedule.batch_size=2"])
def test_other_folders_from_before_the_key_have_no_fixed_total(typed: str) -> None:
    config = load_config(typed.split())
    assert differences(without_key(config_text(config)), config) == []


def test_a_folder_from_before_the_key_with_another_batch_size_is_another_run() -> None:
    old = without_key(config_text(load_config(["schedule.total_batch=null", "schedule.batch_size=2"])))
    assert "schedule.total_batch: null -> 16" in differences(old, load_config(["schedule.batch_size=2"]))


def test_the_total_is_part_of_a_run_and_the_images_of_one_pass_are_not() -> None:
    text = config_text(load_config(["evaluation.batch_size=4"]))
    assert differences(text, load_config(["schedule.batch_size=2", "evaluation.batch_size=4"])) == []
    assert differences(text, load_config(["schedule.total_batch=32"])) == ["schedule.total_batch: 16 -> 32"]


def test_a_run_of_another_recorded_total_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_result({"total_batch_size": 32})
    with pytest.raises(RunFolderError, match="trained with a total batch of 32 images, now it would be 16"):
        refuse_other_batch(load_config(), folder)
    refuse_other_batch(load_config(["schedule.total_batch=null"]), folder)
    refuse_other_batch(load_config(["schedule.total_batch=32"]), folder)


# ---- real runs -------------------------------------------------------------------------------------------------------

SHORT = ("experiment=tiny", "schedule.epochs=5", "model.dropout=0.1", "data.val_images=21", "checkpoint.minutes=0.003")
SHORT += ("schedule.total_batch=16", "schedule.batch_size=4")


def arguments(tmp_path: Path, runs: str) -> tuple[str, ...]:
    return (*SHORT, "data.train_images=160", f"data.cache={tmp_path / 'cache'}", f"runs={tmp_path / runs}")


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "kills"), [(1, 3), (2, 2)])
def test_accumulation_killed_and_resumed_is_bit_equal(tmp_path: Path, ranks: int, kills: int) -> None:
    out = run_well(*arguments(tmp_path, "calm"), ranks=ranks)
    assert f" x {4 // ranks} micro-batches x 4 images = total batch 16" in out
    draw, hits = random.Random(ranks), 0
    for i in range(kills):
        process = start(*arguments(tmp_path, "killed"), ranks=ranks)
        hits += kill_while_training(process, tmp_path / "killed", SIGNALS[i % 3], draw.uniform(0, 0.6), ranks)
    run_well(*arguments(tmp_path, "killed"), ranks=ranks)
    assert hits >= kills - 1, "too few signals arrived during training"
    assert_equal_runs(only_folder(tmp_path / "calm"), only_folder(tmp_path / "killed"))


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes_and_records_it(tmp_path: Path) -> None:
    process = start(*arguments(tmp_path, "moved"), ranks=2)
    assert kill_while_training(process, tmp_path / "moved", SIGNALS[1], 0.8, ranks=2)
    out = run_well(*arguments(tmp_path, "moved"))
    assert re.search("earlier starts had 2 processes, this one has 1, at the same total batch: .* not bit-equal", out)
    folder = only_folder(tmp_path / "moved")
    first = folder.provenance()
    assert first is not None
    starts = [first, *first["later_starts"]]
    assert [(one["world_size"], one["micro_batches"], one["total_batch_size"]) for one in starts] == [
        (2, 2, 16),
        (1, 4, 16),
    ]
    run_well(*arguments(tmp_path, "calm"))
    ours, calm = (without_timing(one) for one in (folder, only_folder(tmp_path / "calm")))
    assert [line["steps"] for line in ours] == [line["steps"] for line in calm]
    assert ours[0]["loss"] == pytest.approx(calm[0]["loss"], rel=0.02)


@pytest.mark.slow
def test_processes_that_cannot_share_the_total_are_one_line_before_anything_is_written(tmp_path: Path) -> None:
    done = run(*arguments(tmp_path, "odd"), ranks=3)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0
    assert len(lines) == 1
    assert "schedule.total_batch=16 cannot be shared equally by 3 processes" in lines[0]
    assert not list((tmp_path / "odd").rglob("state.json"))


@pytest.mark.slow
def test_a_total_that_the_images_do_not_fill_is_one_line(tmp_path: Path) -> None:
    done = run(*(word.replace("train_images=160", "train_images=12") for word in arguments(tmp_path, "few")))
    assert done.returncode == 2
    assert (
        "12 training images do not fill one batch of schedule.total_batch=16: set schedule.total_batch=12"
        in done.stderr
    )
