"""One run on one rank: choose the device, join the other ranks, build everything, then train or evaluate."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from fovea_detr import build
from fovea_detr.config.batching import Batching
from fovea_detr.config.checks import check_start
from fovea_detr.config.schema import Config
from fovea_detr.data.categories import Classes
from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.flaws import shown
from fovea_detr.data.readers import describe_layout, fingerprints
from fovea_detr.errors import ConfigError, NodeError, RunFolderError
from fovea_detr.machine import distributed
from fovea_detr.machine.device import bfloat16_instructions, denormals_flushed
from fovea_detr.runs import provenance
from fovea_detr.runs.claim import read_id
from fovea_detr.runs.extension import origin_of
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.heartbeat import Heartbeat
from fovea_detr.runs.host import Host, record_failures
from fovea_detr.runs.identity import (
    Stored,
    config_text,
    note_left_out,
    refuse_other_batch,
    refuse_other_config,
    refuse_other_data,
)
from fovea_detr.runs.stop import StopFlag
from fovea_detr.training import preflight
from fovea_detr.training.average import Average
from fovea_detr.training.console import Console, percent, summary
from fovea_detr.training.initial import Weights, load_backbone
from fovea_detr.training.loop import Split, Trainer
from fovea_detr.training.optim import build_optimizer
from fovea_detr.training.saver import About
from fovea_detr.training.state import TrainState
from fovea_detr.training.trackers import refuse_missing
from fovea_detr.training.tracking import Tracking

NAMES_SHOWN = 6  # of classes


def run(config: Config, point: str, host: Host | None = None, folder: RunFolder | None = None) -> float | None:
    """Run one point of a study in runs/<study>/<point>/: start it, resume it, or print that it is done -> its last AP.

    folder: that folder, if the caller has opened it.
    Raises UserError for errors that a user can fix. A run stopped by a signal exits with 128 + its number.
    """
    check_start(config)
    folder, host = folder or RunFolder(Path(config.runs) / config.study / point), host or Host()
    device = choose_device(config, host.gpus_asked)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with denormals_flushed(device), distributed.process_group(device), record_failures(folder, host):
        is_done = finished_before(config, folder)
        if not is_done or lacks_predictions(config, folder):
            distributed.first_on_node(lambda: refuse_missing(config.tracker))
            distributed.first_on_node(lambda: Batching.of(config, distributed.world_size()))  # or ConfigError
            with host.stop.listening() as stop:
                distributed.first_on_node(lambda: claim(folder, host))
                with watched(config, folder), closing(build_trainer(config, folder, device, stop)) as trainer:
                    (make_predictions if is_done else train_or_evaluate)(trainer)
        return last_ap(folder)


def last_ap(folder: RunFolder) -> float | None:
    """What a Hydra sweeper optimises. None on other ranks than 0."""
    return (folder.result() or {})["last"]["AP"] if distributed.rank() == 0 else None


def train_or_evaluate(trainer: Trainer) -> None:
    """The whole run, from the first step to result.json."""
    if trainer.config.mode == "eval":
        metrics, _ = trainer.evaluate()
        trainer.finish(metrics)
        return
    announce(trainer)
    preflight.before_first_step(trainer)
    trainer.fit()
    trainer.finish()


def lacks_predictions(config: Config, folder: RunFolder) -> bool:
    """Whether a finished run is to get its predictions.json. RunFolderError: it has nothing to make them from."""
    if not config.evaluation.save_predictions or (folder.path / "predictions.json").exists():
        return False
    if config.mode == "train" and not folder.checkpoint_path.exists():
        raise RunFolderError(f"{folder.path}: no checkpoint.pt in it: its predictions.json cannot be made")
    return True


def make_predictions(trainer: Trainer) -> None:
    """Evaluate a finished run again, for its predictions.json. RunFolderError: its AP is not that of result.json."""
    try:
        metrics, _ = trainer.evaluate()
    finally:
        if distributed.rank() == 0:
            trainer.folder.write_state("done")
    if metrics:
        trainer.console.log(f"predictions.json made, its AP is {percent(metrics['AP'])}, as in result.json")


def choose_device(config: Config, gpus_asked: str = "") -> torch.device:
    """device=auto is this local rank's GPU if there is one. Raises ConfigError for a missing device or precision.

    gpus_asked: what a job has asked for; NodeError if its node shows none.
    """
    has_gpu = torch.cuda.is_available()
    if gpus_asked and config.device != "cpu" and not has_gpu:
        raise NodeError(
            f"node {socket.gethostname()}: the job asked for {gpus_asked}, but torch {torch.__version__} sees no GPU "
            "there; use device=cpu to train on the CPU"
        )
    if config.device == "cuda" and not has_gpu:
        raise ConfigError("device=cuda: torch sees no GPU here; use device=cpu, or a torch build for this driver")
    if config.device == "cpu" or not has_gpu:
        return torch.device("cpu")
    local, count = distributed.local_rank(), torch.cuda.device_count()
    if local >= count:
        raise ConfigError(
            f"local rank {local} has no GPU: this node shows {count}; start at most {count} processes on it"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    if config.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(f"precision=bf16: {torch.cuda.get_device_name(device)} has no bfloat16; use precision=fp32")
    return device


def finished_before(config: Config, folder: RunFolder) -> bool:
    """Whether the folder holds this run's result; if so, print it. Raises RunFolderError for another run's folder."""
    refuse_other_config(config, folder)
    if distributed.rank() == 0:
        note_left_out(folder.path, folder.config_text())
    found = distributed.once_per_node(lambda: fingerprints(config.data))
    refuse_other_data(folder, found, config.data.root)
    refuse_other_batch(config, folder)
    if not folder.has_result():
        distributed.first_on_node(lambda: origin_of(config, folder))  # raises RunFolderError before the claim
        return False
    result = folder.result() or {}
    if config.mode == "eval":
        refuse_other_weights(config, folder)
    if distributed.rank() == 0:
        print(f"{folder.path}: done already: {summary(result)}", flush=True)
    return True


def refuse_other_weights(config: Config, folder: RunFolder) -> None:
    before = (folder.provenance() or {}).get("weights_sha256")
    assert config.weights is not None
    if before != provenance.file_fingerprint(config.weights):
        raise RunFolderError(
            f"{folder.path} holds the result of another file that was named {config.weights}: choose study=NAME"
        )


def claim(folder: RunFolder, host: Host) -> None:
    """Rank 0 locks the folder against other processes and writes the state "running"."""
    if distributed.rank() == 0:
        folder.lock(host.lock_seconds)
        host.begin(folder)
        folder.write_state("running")


@contextmanager
def watched(config: Config, folder: RunFolder) -> Iterator[None]:
    """The other ranks join rank 0's claim; within the block, all watch each other."""
    if not distributed.is_active():
        yield
        return
    own = folder.claimed
    run_id, is_first = distributed.gather(None if own is None else (own.run_id, own.is_first))[0]
    if own is None:
        folder.join(run_id, is_first=is_first)
    with Heartbeat(folder, distributed.rank(), distributed.world_size(), config.cluster.stall_minutes):
        yield


def build_trainer(config: Config, folder: RunFolder, device: torch.device, stop: StopFlag) -> Trainer:
    """Data, model, optimizer and criterion, restored from the folder's checkpoint if there is one."""
    config = with_num_classes(config, stored_num_classes(folder))
    origin = distributed.once_per_node(lambda: origin_of(config, folder))
    read = distributed.once_per_node(lambda: build.read_splits(config))
    train_set, val_set = distributed.first_on_node(lambda: build.build_data(config, read))
    classes = val_set.annotations.classes
    weights = Weights.read(config, classes) if config.mode == "eval" else None  # the model has its classes
    config = with_num_classes(config, (weights.number if weights else None) or classes.number)
    splits = {name: split for name, split in (("val", val_set), ("train", train_set)) if split is not None}
    data = {name: split.annotations.fingerprint for name, split in splits.items()}
    refuse_other_data(folder, data, config.data.root)
    if distributed.rank() == 0:
        flaws = {name: split.annotations.flaws.as_json() for name, split in splits.items()}
        set_classes = weights is None and classes.has_more_than_needed
        facts = {"data": data, "data_flaws": flaws, **extension(origin)}
        record_start(config, folder, device, facts, has_set_classes=set_classes)
        if config.data.val_fraction:
            folder.write_split({name: split.annotations.ids_by_file for name, split in splits.items()})
    console = Console(folder, folder.path.name, config.last_epoch, enabled=distributed.rank() == 0)
    if config.tracker != "none" and distributed.rank() == 0:
        console.tracking = Tracking(config, folder, console.log)
    for line in data_lines(config, val_set, train_set):
        console.log(line)
    state = initial_state(config, device)
    trainer = Trainer(config, folder, device, state, build.build_criterion(config).to(device), console, stop)
    trainer.saver.about = About(config, data, classes.by_output, classes.id_by_output)
    if config.mode == "train":
        restore(trainer, origin)
    if not state.resumed:
        load_initial_weights(config, state.model, console, weights, classes)
    trainer.wrapped = wrap_for_ranks(config, state.model, device)
    ids = classes.id_by_output if weights is None or weights.classes is None else weights.classes.pairs
    ids = None if all(ids.get(i) == i for i in classes.names) else ids
    trainer.val = Split(val_set, build.build_loader(config, val_set, device), config, ids)
    if train_set is not None:
        trainer.train = Split(train_set, build.build_loader(config, train_set, device), config)
    return trainer


def extension(origin: RunFolder | None) -> dict[str, Any]:
    """What provenance.json says about the run that this one extends."""
    if origin is None:
        return {}
    facts = {"folder": str(origin.path.absolute()), "run": read_id(origin.path)}
    return {"extends": facts | {"checkpoint_sha256": provenance.file_fingerprint(origin.checkpoint_path)}}


def with_num_classes(config: Config, number: int | None) -> Config:
    return replace(config, data=replace(config.data, num_classes=number or config.data.num_classes))


def stored_num_classes(folder: RunFolder) -> int | None:
    """The number of classes of this run, if it has been started before."""
    text = folder.config_text()
    return None if text is None else Stored(text).num_classes


def restore(trainer: Trainer, origin: RunFolder | None) -> None:
    """From the folder's newest checkpoint, or from the run that this one extends; a new run stays as it is."""
    trainer.saver.restore()
    if origin is not None:
        trainer.saver.extend(origin)
        after, last = trainer.state.epoch, trainer.config.last_epoch
        trainer.console.log(f"extends {origin.path}: goes on to epoch {last} from its state after {after}")


def data_lines(config: Config, val: CocoDataset, train: CocoDataset | None) -> Iterator[str]:
    """What the log says about the data: one line, the layout, warnings."""
    yield data_line(config, val, train)
    if layout := describe_layout(config.data):
        yield layout
    for split in (val, train):
        for line in split.annotations.warnings(config.model.num_queries) if split is not None else ():
            yield f"warning: {line}"


def data_line(config: Config, val: CocoDataset, train: CocoDataset | None) -> str:
    """`data: coco, /data/coco: 118287 + 5000 images, 80 classes (person, bicycle, car, ...), at most 1333 px`."""
    splits = [split for split in (train, val) if split is not None]
    names = [shown(name) for name in val.annotations.classes.labels.values()]
    some = ", ".join(names if len(names) <= NAMES_SHOWN else [*names[: NAMES_SHOWN - 1], "..."])
    sizes = {tuple(size) for split in splits for size in split.annotations.sizes_hw.tolist()}
    longest = max(max(hw) for split in splits for size in sizes for hw in split.transform.largest_sizes(size))
    where = ", ".join(filter(None, (config.data.name, config.data.root or config.data.val.annotations)))
    return (
        f"data: {where}: {' + '.join(str(len(split)) for split in splits)} images, {len(names)} "
        f"class{'es' if len(names) > 1 else ''} ({some}), at most {longest} px"
    )


def record_start(
    config: Config, folder: RunFolder, device: torch.device, data: dict[str, Any], *, has_set_classes: bool
) -> None:
    """Write config.yaml at the first start, and the provenance of every start, the first one at the top level.

    Of a finished run, nothing changes. data: the facts of it: fingerprints and flaws; what the run extends, if it does.
    has_set_classes: `data.num_classes` is more than its categories need.
    """
    if folder.has_result():
        return
    text = folder.config_text()
    if text is None:
        folder.write_config(config_text(config, has_set_classes=has_set_classes))
    batching = Batching.of(config, distributed.world_size())
    facts = provenance.describe(device, batching.processes, batching.total)
    facts |= {"micro_batches": batching.micro_batches, "images_per_micro_batch": batching.images}
    facts |= {**data, "evaluator": f"{config.evaluation.backend} {facts['packages'][config.evaluation.backend]}"}
    if config.weights is not None:
        facts["weights_sha256"] = provenance.file_fingerprint(config.weights)
    first = folder.provenance()
    if first is not None:
        facts = {**first, "later_starts": [*first.get("later_starts", []), facts]}
    folder.write_provenance(facts)


def initial_state(config: Config, device: torch.device) -> TrainState:
    """A new model, initialised from the configuration's seed, and its optimizer."""
    torch.manual_seed(config.seed)
    model = build.build_model(config).to(device)
    optimizer = build_optimizer(model, config.schedule)
    decay = config.train.ema if config.mode == "train" else None
    average = None if decay is None else Average(model, decay)
    return TrainState(model, optimizer, average, total_batch_size=Batching.of(config, distributed.world_size()).total)


def load_initial_weights(
    config: Config, model: torch.nn.Module, console: Console, weights: Weights | None, classes: Classes
) -> None:
    """Load weights=PATH, to finetune or to evaluate it, else the pretrained backbone, if any."""
    if config.weights is None:
        load_backbone(config, model, console)
    else:
        (weights or Weights.read(config, classes)).load(model, console)


def wrap_for_ranks(config: Config, model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The module that training calls: the model with its losses, with several processes inside DDP."""
    whole = distributed.WithLosses(model)
    if not distributed.is_active():
        return whole
    # The search for unused parameters keeps DDP from regrouping its buckets after the first step, so that a resumed run
    # adds the ranks' gradients in the same order as an undisturbed one.
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    fixed_order = device.type == "cpu"
    # Its new name, forward_sync_buffers, does not exist in the older versions of torch that are allowed.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    statistics = config.model.batch_norm == "trainable"  # the only buffers that training changes
    return DistributedDataParallel(whole, find_unused_parameters=fixed_order, broadcast_buffers=statistics)


def announce(trainer: Trainer) -> None:
    """Log the number of parameters, the processes, the total batch size and the position of a resumed run."""
    schedule, state = trainer.config.schedule, trainer.state
    trainable = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
    trainer.console.log(f"{trainable / 1e6:.2f} M trainable parameters; {trainer.device.type}, {trainer.batching}")
    if trainer.device.type == "cpu":
        if trainer.config.precision == "bf16" and bfloat16_instructions() == []:
            trainer.console.log("warning: this CPU has no bfloat16 instructions: precision=fp32 is faster on it")
        trainer.console.log("next: one pass of the largest batch, for its memory; it takes as long as a step")
    if state.total_batch_size != schedule.usual_total_batch:
        is_larger = state.total_batch_size > schedule.usual_total_batch
        trainer.console.log(
            f"warning: the total batch is {state.total_batch_size}, the recipe's is {schedule.usual_total_batch}: "
            "results are not comparable"
            f"{', and AP is usually lower with larger batches at the same learning rate' if is_larger else ''}"
        )
    if state.resumed:
        done = f"{state.epoch} epochs and {state.batches_done} steps"
        trainer.console.log(f"resumed after {done} (start {state.starts})")
        note_other_processes(trainer)


def note_other_processes(trainer: Trainer) -> None:
    """Log if earlier starts had another number of processes, which provenance.json records of every start."""
    first = trainer.folder.provenance() or {}
    starts = [first.get("world_size"), *(start.get("world_size") for start in first.get("later_starts", []))]
    others = sorted({count for count in starts if count not in (None, trainer.batching.processes)})
    if others:
        trainer.console.log(
            f"earlier starts had {' or '.join(map(str, others))} process{'es' if others != [1] else ''}, this one has "
            f"{trainer.batching.processes}, at the same total batch: sums are rounded in another order, so the weights "
            "are not bit-equal to those of an undisturbed run"
        )
