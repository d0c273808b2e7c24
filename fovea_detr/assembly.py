"""From a configuration and a run folder to the trainer: data, model, optimizer, criterion; new, or restored."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from fovea_detr import build
from fovea_detr.config.batching import Batching
from fovea_detr.config.schema import Config
from fovea_detr.data.categories import Classes
from fovea_detr.machine import distributed
from fovea_detr.runs import provenance
from fovea_detr.runs.claim import read_id
from fovea_detr.runs.extension import origin_of
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.identity import refuse_other_data
from fovea_detr.runs.stop import StopFlag
from fovea_detr.runs.stored import Stored, config_text
from fovea_detr.training.announce import data_lines
from fovea_detr.training.average import Average
from fovea_detr.training.console import Console
from fovea_detr.training.initial import Weights, load_backbone
from fovea_detr.training.loop import Split, Trainer
from fovea_detr.training.optim import build_optimizer
from fovea_detr.training.saver import About
from fovea_detr.training.state import TrainState
from fovea_detr.training.tracking import Tracking


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
