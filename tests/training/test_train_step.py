"""One training step: synchronisations with the device, losses that are not finite, and when a run stops."""

from __future__ import annotations

import copy
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fovea_detr.build import build_criterion, build_model
from fovea_detr.errors import NonFiniteError
from fovea_detr.loss import matcher
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.stop import Stopped
from fovea_detr.training import reports
from fovea_detr.training.average import Average
from fovea_detr.training.console import Console
from fovea_detr.training.loop import Trainer
from fovea_detr.training.optim import build_optimizer
from fovea_detr.training.state import TrainState
from tests.model.builders import random_batch, small_config
from tests.predictions import random_targets

# What synchronises the host with a GPU: reading a value, and results whose shape depends on values.
READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero", "unique")
READS += ("masked_select", "argwhere", "equal")
NAMES = {"loss", "loss_classification", "loss_l1", "loss_giou", "class_error", "cardinality_error", "gradient_norm"}
READING_OPERATIONS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique2", "equal")


class SmallTrainer(Trainer):
    """A trainer of a small model on one batch, without data."""

    def __init__(self, folder: Path, *overrides: str, device: str = "cpu") -> None:
        config, run_folder = small_config("model.dropout=0.1", *overrides), RunFolder(folder)
        torch.manual_seed(0)
        model = build_model(config).to(device).train()
        average = None if config.train.ema is None else Average(model, config.train.ema)
        state = TrainState(model, build_optimizer(model, config.schedule), average)
        console, criterion = Console(run_folder, "small", 1, enabled=False), build_criterion(config).to(device)
        super().__init__(config, run_folder, torch.device(device), state, criterion, console)
        self.batch, self.targets = random_batch((64, 96), (48, 64)), random_targets(3, 0)
        self.steps = 0

    def step(self) -> None:
        self.train_step(self.batch, self.targets, self.steps)
        self.end_step(self.steps)
        self.steps += 1

    def make_gradient_nan(self) -> None:
        next(self.state.model.parameters()).register_hook(lambda gradient: gradient * float("nan"))

    def weights(self) -> dict[str, Tensor]:
        return copy.deepcopy(self.state.model.state_dict())


class Watch(TorchFunctionMode):
    """Records every Python call that reads a tensor's value."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in READS:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Records every operation, of Python and of autograd, that reads a tensor's value."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation._schema.name.removeprefix("aten::")
        is_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in READING_OPERATIONS or is_mask:
            self.seen.append(name)
        return operation(*args, **(kwargs or {}))


@contextmanager
def counted_fetches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of the copies to the host by `to_host`, the only allowed way; each is one synchronisation."""
    sizes: list[int] = []

    def to_host(values: Tensor) -> np.ndarray:
        sizes.append(values.numel())
        with torch._C.DisableTorchFunction():
            return values.detach().cpu().numpy()

    monkeypatch.setattr(matcher, "to_host", to_host)
    monkeypatch.setattr(reports, "to_host", to_host)
    yield sizes


def reads_of_two_steps(trainer: SmallTrainer, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[str], list[str]]:
    """After a first step: the copies to the host of two more, and what else read a tensor's value."""
    trainer.step()
    with counted_fetches(monkeypatch) as fetched, Watch() as calls, Operations() as operations:
        trainer.step()
        trainer.step()
    return len(fetched), calls.seen, operations.seen


@pytest.mark.parametrize(
    "overrides",
    [
        ("dynamic_scale=type3", "mixture=head_query"),
        ("dynamic_scale=type4",),
        ("model.loss=softmax", "model.fovea=false"),
        ("precision=bf16",),
        ("schedule.clip=0",),
        ("train.ema=0.9",),
    ],
    ids=str,
)
def test_a_step_reads_from_the_device_once(
    tmp_path: Path, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = SmallTrainer(tmp_path, *overrides)
    assert reads_of_two_steps(trainer, monkeypatch) == (2, [], [])


@pytest.mark.parametrize("read", [lambda x: x.item(), lambda x: x.tolist(), bool, float, lambda x: x[x > 0]])
def test_watch_and_operations_record_reads(read: Any) -> None:
    with Watch() as calls, Operations() as operations:
        read(torch.ones(()) if read in (bool, float) else torch.ones(1))
    assert calls.seen + operations.seen


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_synchronises_with_the_gpu_once(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    trainer = SmallTrainer(tmp_path, device="cuda")
    for _ in range(3):
        trainer.step()
    recwarn.clear()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in recwarn if "synchroniz" in str(w.message)]) == 1


def test_losses_are_read_one_step_late_and_none_is_lost(tmp_path: Path) -> None:
    trainer = SmallTrainer(tmp_path)
    seen = []
    for _ in range(4):
        trainer.step()
        seen.append(dict(trainer.reports.latest))
    assert seen[0] == {}
    trainer.reports.settle()
    seen = [*seen[1:], trainer.reports.latest]
    assert all(set(one) == NAMES for one in seen)
    assert trainer.epoch_means() == {name: sum(one[name] for one in seen) / 4 for name in seen[0]}


@pytest.mark.parametrize("next_thing", ["step", "settle"])
def test_a_step_that_is_not_finite_changes_no_weight_and_is_named(tmp_path: Path, next_thing: str) -> None:
    trainer = SmallTrainer(tmp_path)
    trainer.step()
    before, optimizer = trainer.weights(), copy.deepcopy(trainer.state.optimizer.state_dict())
    trainer.make_gradient_nan()
    trainer.step()
    with pytest.raises(NonFiniteError, match=r"step 1, rank 0, images .*: the gradient is not finite"):
        trainer.step() if next_thing == "step" else trainer.reports.settle()
    assert all(torch.equal(value, before[name]) for name, value in trainer.weights().items())
    after = trainer.state.optimizer.state_dict()["state"]
    assert all(torch.equal(value, optimizer["state"][i][key]) for i in after for key, value in after[i].items())
    assert trainer.epoch_means()["loss"] > 0


def test_infinite_losses_are_named_with_their_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = SmallTrainer(tmp_path)
    monkeypatch.setitem(trainer.criterion.weights, "l1", float("inf"))
    trainer.step()
    with pytest.raises(
        NonFiniteError, match=r"step 0, .*: the losses are not finite \(loss inf, loss_class.* 0\."
    ) as caught:
        trainer.step()
    assert "\n" not in str(caught.value)


def test_nothing_is_saved_of_an_epoch_that_is_not_finite(tmp_path: Path) -> None:
    trainer = SmallTrainer(tmp_path, "checkpoint.minutes=1e-9")
    trainer.step()
    saved = trainer.folder.checkpoint_path.read_bytes()
    trainer.make_gradient_nan()
    trainer.step()
    assert trainer.folder.checkpoint_path.read_bytes() == saved


def test_a_checkpoint_has_the_losses_of_all_its_steps(tmp_path: Path) -> None:
    kept, often = SmallTrainer(tmp_path / "kept"), SmallTrainer(tmp_path / "often", "checkpoint.minutes=1e-9")
    for _ in range(3):
        kept.step()
        often.step()
    position = torch.load(often.folder.checkpoint_path)["position"]
    kept.reports.settle()
    assert position["batches_done"] == 3
    assert position["sums"] == kept.state.sums


def test_all_ranks_stop_after_the_step_that_began_with_the_signal_known(tmp_path: Path) -> None:
    trainer = SmallTrainer(tmp_path)
    trainer.step()
    trainer.stop.number = signal.SIGTERM
    trainer.step()  # sends the flag to the other ranks
    with pytest.raises(Stopped):
        trainer.step()
    position = torch.load(trainer.folder.checkpoint_path)["position"]
    assert position["batches_done"] == 3
    assert set(position["sums"]) == NAMES


def test_a_checkpoint_on_one_rank_does_not_change_when_it_stops(tmp_path: Path) -> None:
    """Rank 0 reads reports earlier if its clock says that a checkpoint is due; it still stops with the other ranks."""
    trainer = SmallTrainer(tmp_path, "checkpoint.minutes=1e-9")
    trainer.stop.number = signal.SIGTERM
    trainer.step()
    with pytest.raises(Stopped):
        trainer.step()
    assert trainer.state.batches_done == 2
