"""One run on one rank: device, other ranks, run folder, build, train or evaluate; and fail loudly."""

from __future__ import annotations

import warnings
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch.nn.parallel import DistributedDataParallel

from fovea_detr import build
from fovea_detr.config.schema import Config
from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.loader import Loader
from fovea_detr.errors import ConfigError, RunFolderError
from fovea_detr.evaluation import detections
from fovea_detr.machine import distributed
from fovea_detr.machine.device import denormals_flushed
from fovea_detr.runs import provenance
from fovea_detr.runs.folder import METRICS, RunFolder
from fovea_detr.runs.host import Host, record_failures
from fovea_detr.runs.identity import refuse_other_config
from fovea_detr.training import checkpoint, compiled, loop, preflight
from fovea_detr.training.console import Progress
from fovea_detr.training.optim import build_optimizer
from fovea_detr.training.state import Parts, Run


def run(config: Config, point: str, host: Host | None = None) -> None:
    """Carry out one point of a study in runs/<study>/<point>/: start it, resume it, or say that it is done.

    Raises UserError for what a user can put right. A run stopped by a signal exits with 128 + its number.
    """
    device = choose_device(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    folder, host = RunFolder(Path(config.runs) / config.study / point), host or Host()
    with denormals_flushed(device), distributed.process_group(device), record_failures(folder, host):
        if finished_before(config, folder):
            return
        with host.stop.listening() as stop:
            carry_out(config, Run(config, folder, stop, device), point, host)


def carry_out(config: Config, run: Run, point: str, host: Host) -> None:
    distributed.first_on_node(lambda: claim(run, host.lock_seconds))
    train_set, val_set = distributed.first_on_node(lambda: build.build_data(config))
    config = run.config = replace(config, data=replace(config.data, num_classes=val_set.annotations.num_classes))
    if run.is_writer:
        write_beginning(run, train_set, val_set)
    progress = Progress(run.folder, point, config.schedule.epochs, speaks=run.is_writer, tracker=config.tracker)
    parts = build_parts(run, progress)
    criterion = build.build_criterion(config).to(run.device)
    train_loader = build.build_loader(config, train_set, run.device) if train_set is not None else None
    val_loader = build.build_loader(config, val_set, run.device)
    backend = config.evaluation.backend
    with closing(loop.Work(train_set, val_set, criterion, progress, backend, train_loader, val_loader)) as work:
        if config.mode == "train":
            announce(run, parts, work)
            preflight.before_first_step(run, parts, work)
            loop.fit(run, parts, work)
            metrics = {}
        else:
            metrics, _ = loop.evaluate(run, parts, work)
        finish(run, parts, work, metrics)


def choose_device(config: Config) -> torch.device:
    """`auto` takes this local rank's GPU if there is one. Raises ConfigError for a device or precision it lacks."""
    has_gpu = torch.cuda.is_available()
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
    """Whether the folder holds this run's result: if so, show it. Raises RunFolderError if it is another run's."""
    refuse_other_config(config, folder)
    result = folder.result()
    if result is None:
        return False
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
            f"{folder.path} holds the result of another file of the name {config.weights}: choose study=NAME"
        )


def claim(run: Run, seconds: float) -> bool:
    """Rank 0 holds the folder against a second process, and from here on says that it is running."""
    if run.is_writer:
        run.folder.lock(seconds)
        run.folder.write_state("running")
    return True


def write_beginning(run: Run, train_set: CocoDataset | None, val_set: CocoDataset) -> None:
    """config.yaml at the first start; provenance of every start, the first one's on top."""
    if run.folder.config_text() is None:
        run.folder.write_config(OmegaConf.to_yaml(OmegaConf.structured(run.config)))
    facts = provenance.describe(run.device, distributed.world_size(), run.total_batch_size)
    facts["data"] = {"val": val_set.annotations.fingerprint}
    if train_set is not None:
        facts["data"]["train"] = train_set.annotations.fingerprint
    if run.config.weights is not None:
        facts["weights_sha256"] = provenance.file_fingerprint(run.config.weights)
    first = run.folder.provenance()
    if first is not None:
        facts = {**first, "later_starts": [*first.get("later_starts", []), facts]}
    run.folder.write_provenance(facts)


def build_parts(run: Run, progress: Progress) -> Parts:
    """Model and optimizer, with the weights of the folder's checkpoint, else of weights=PATH, else of the backbone."""
    config = run.config
    torch.manual_seed(config.seed)
    model = build.build_model(config).to(run.device)
    optimizer = build_optimizer(model, config.schedule)
    parts = Parts(model, model, optimizer)
    if config.mode == "train":
        run.resume(parts)
    if not run.resumed:
        load_start(run, model, progress)
    if distributed.is_active():
        # Looking for unused parameters keeps DDP from regrouping its buckets after the first step, so that a resumed
        # run adds the ranks' gradients in the same order as an undisturbed one.
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
        fixed_order = run.device.type == "cpu"
        # Its new name, forward_sync_buffers, is unknown to the older versions of torch that are allowed.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        statistics = config.model.batch_norm == "trainable"  # the only buffers that training changes
        parts.wrapped = DistributedDataParallel(model, find_unused_parameters=fixed_order, broadcast_buffers=statistics)
    return parts


def load_start(run: Run, model: torch.nn.Module, progress: Progress) -> None:
    """Fresh weights: finetune from weights=PATH, evaluate it, or start from a pretrained backbone."""
    config = run.config
    if config.weights is not None:
        path, training = config.weights, config.mode == "train"
        load = lambda: checkpoint.load_weights(model, path, other_classes=training, backbone_alone=training)  # noqa: E731
        progress.say(distributed.first_on_node(load).describe())
    elif config.model.backbone_weights != "none":
        state = distributed.first_on_node(
            lambda: checkpoint.pretrained_state(config.model.backbone, config.model.backbone_weights)
        )
        loaded = checkpoint.load_weights(model, state)
        progress.say(f"backbone: {loaded.loaded} tensors from {config.model.backbone_weights}")


def announce(run: Run, parts: Parts, work: loop.Work) -> None:
    """Where the run stands and its total batch size, with a warning if that is not the recipe's."""
    schedule, world = run.config.schedule, distributed.world_size()
    trainable = sum(p.numel() for p in parts.model.parameters() if p.requires_grad)
    work.progress.say(
        f"{trainable / 1e6:.2f} M trainable parameters; {run.device.type}, {world} process{'es' if world > 1 else ''} "
        f"x {schedule.batch_size} images = total batch {run.total_batch_size}"
    )
    if run.total_batch_size != schedule.usual_total_batch:
        work.progress.say(
            f"warning: the total batch is {run.total_batch_size}, the recipe's is {schedule.usual_total_batch}: "
            "results are not comparable, and AP is usually lower with larger batches at the same learning rate"
        )
    if run.resumed:
        done = f"{run.position.epoch} epochs and {run.position.batches_done} steps"
        work.progress.say(f"resumed after {done} (start {run.position.starts})")


def finish(run: Run, parts: Parts, work: loop.Work, metrics: dict[str, Any]) -> None:
    """result.json, whose presence means done; then the state, and the result on the screen."""
    if not run.is_writer:
        return
    count = min(run.config.evaluation.timed_images, len(work.val))
    single = Loader(work.val, seed=0, workers=0).read([[i] for i in range(count)])
    with compiled.plain():
        seconds = detections.inference_seconds(parts.model, single, run.device, run.config.precision)
    result = {
        "mode": run.config.mode,
        **(run.outcome() if run.config.mode == "train" else {"last": metrics}),
        "inference_seconds": seconds,
        "inference_images": count,
        "parameters": sum(p.numel() for p in parts.model.parameters()),
        "total_batch_size": run.total_batch_size,
        "world_size": distributed.world_size(),
    }
    run.folder.write_result(result)
    run.folder.write_state("done")
    work.progress.say(f"done: {summary(result)}")


def summary(result: dict[str, Any]) -> str:
    """The line a person wants: the last metrics, and what it took."""
    scores = ", ".join(f"{name} {result['last'][name]:.3f}" for name in METRICS[:6] if name in result["last"])
    best = f"; best AP {result['best']['AP']:.3f} after epoch {result['best']['epoch']}" if "best" in result else ""
    took = f"; {result['epochs']} epochs in {result['minutes']:.1f} minutes" if "epochs" in result else ""
    return f"{scores}{best}{took}; inference {result['inference_seconds'] * 1000:.1f} ms an image"
