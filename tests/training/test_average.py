"""`train.ema`: the averaged weights against a slow twin and torch's own, on several ranks, after a kill."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fovea_detr import assembly
from fovea_detr.runs.folder import RunFolder
from fovea_detr.training.average import Average, decay_at
from tests.launch import only_folder, run_well, start
from tests.training.test_extend import STEP
from tests.training.test_resume import SIGNALS, assert_equal_runs, kill_while_training
from tests.training.test_train_step import SmallTrainer

STEPS = 15


def stepped(model: nn.Sequential) -> list[dict[str, Tensor]]:
    """Train a little, with a batch norm -> the state after each step. The model ends as after the last one."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    states = []
    for step in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(4, 3, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
        states.append(deepcopy(model.state_dict()))
    return states


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_average_is_that_of_the_formula_number_by_number(decay: float) -> None:
    model, carrier = small_model(), small_model()
    average, states = Average(model, decay), stepped(model)
    for step, state in enumerate(states):
        carrier.load_state_dict(state)
        average.update(carrier, step)
    for name, found in average.model.state_dict().items():
        if not found.is_floating_point():
            assert found.equal(states[-1][name]), "counters are copied"
            continue
        for place in range(found.numel()):
            expected = 0.0
            for step, state in enumerate(states):
                d = min(decay, step / (step + 9))
                expected = d * expected + (1 - d) * state[name].flatten()[place].item()
            assert found.flatten()[place].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_with_a_decay_that_needs_no_warm_up_it_is_torchs_bit_for_bit() -> None:
    model, carrier = small_model(), small_model()
    average = Average(model, 0.1)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.1), use_buffers=True)
    for step, state in enumerate(stepped(model)):
        carrier.load_state_dict(state)
        average.update(carrier, step)
        theirs.update_parameters(carrier)
    expected = theirs.module.state_dict()
    floats = [name for name, value in expected.items() if value.is_floating_point()]
    assert all(average.model.state_dict()[name].equal(expected[name]) for name in floats)


def test_the_decay_grows_to_its_value() -> None:
    assert [decay_at(0.999, step) for step in (0, 1, 9, 91)] == [0, 0.1, 0.5, 0.91]
    assert decay_at(0.999, 10**6) == 0.999


def test_it_changes_no_weight(tmp_path: Path) -> None:
    with_it, without = SmallTrainer(tmp_path / "a", "train.ema=0.9"), SmallTrainer(tmp_path / "b")
    for _ in range(3):
        with_it.step()
        without.step()
    assert all(value.equal(without.weights()[name]) for name, value in with_it.weights().items())
    assert with_it.state.average is not None
    assert not with_it.state.average.model.class_head.weight.equal(with_it.state.model.class_head.weight)  # type: ignore[union-attr]


def on_rank(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    trainer = SmallTrainer(folder / str(rank), "train.ema=0.9")
    trainer.wrapped = assembly.wrap_for_ranks(trainer.config, trainer.state.model, trainer.device)
    trainer.targets = trainer.targets[:: 1 - 2 * rank]  # other objects on each rank
    for _ in range(4):
        trainer.step()
    assert trainer.state.average is not None
    torch.save(trainer.state.average.model.state_dict(), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_ranks_have_the_same_average(tmp_path: Path) -> None:
    spawn(on_rank, (tmp_path,), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(value.equal(other[name]) for name, value in one.items())


# ---- real runs -------------------------------------------------------------------------------------------------------

SHORT = (*STEP, "train.ema=0.99", "checkpoint.best=true", "evaluation.losses=true")


def weights_of(folder: RunFolder, name: str, key: str = "model") -> dict[str, Tensor]:
    return torch.load(folder.path / name)[key]


def assert_equal_weights(folders: list[RunFolder], name: str, key: str = "model") -> None:
    ours, theirs = (weights_of(folder, name, key) for folder in folders)
    assert ours.keys() == theirs.keys()
    assert all(value.equal(theirs[tensor]) for tensor, value in ours.items())


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_and_resumed_it_is_bit_equal(tmp_path: Path, ranks: int) -> None:
    arguments = (*SHORT, "schedule.epochs=5", f"data.cache={tmp_path / 'cache'}")
    run_well(*arguments, f"runs={tmp_path / 'calm'}", ranks=ranks)
    process = start(*arguments, f"runs={tmp_path / 'killed'}", ranks=ranks)
    assert kill_while_training(process, tmp_path / "killed", SIGNALS[0], 0.6, ranks), "the signal came too late"
    run_well(*arguments, f"runs={tmp_path / 'killed'}", ranks=ranks)
    folders = [only_folder(tmp_path / name) for name in ("calm", "killed")]
    assert_equal_runs(*folders)
    assert_equal_weights(folders, "checkpoint.pt", "ema")
    for name in ("ema.pt", "best.pt", "best_ema.pt"):
        assert_equal_weights(folders, name)
    result = folders[1].result()
    assert result is not None
    assert (result["best"]["checkpoint"], result["ema_best"]["checkpoint"]) == ("best.pt", "best_ema.pt")
    assert result["ema_checkpoint"] == "ema.pt"
    assert result["ema_best"]["ema_AP"] == max(line["ema_AP"] for line in folders[1].history())


@pytest.mark.slow
def test_extended_it_goes_on_and_its_file_has_its_ap(tmp_path: Path) -> None:
    arguments = (*SHORT, f"data.cache={tmp_path / 'cache'}", f"runs={tmp_path}")
    run_well(*arguments, "schedule.epochs=4", "study=a")
    run_well(*arguments, "schedule.epochs=4", "extend=5", "study=a")
    run_well(*arguments, "schedule.epochs=5", "study=b")
    (extended,) = (tmp_path / "a").glob("*extend=5*")
    folders = [RunFolder(extended), only_folder(tmp_path, "b")]
    assert_equal_runs(*folders)
    assert_equal_weights(folders, "checkpoint.pt", "ema")
    assert_equal_weights(folders, "best_ema.pt")
    result = folders[0].result()
    assert result is not None
    assert result["ema_best"]["checkpoint"] == "best_ema.pt", "taken along from the run that it extends"
    for name, ap in (("ema.pt", result["last"]["ema_AP"]), ("best_ema.pt", result["ema_best"]["ema_AP"])):
        evaluated = (f"weights={extended / name}", "mode=eval", f"runs={tmp_path}", f"study={name}")
        run_well(*evaluated, "threads=1", "device=cpu", f"data.cache={tmp_path / 'cache'}")
        found = only_folder(tmp_path, name).result()
        assert found is not None
        assert found["last"]["AP"] == ap > 0
