"""One run on one rank: choose the device, join the other ranks, then train or evaluate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from fovea_detr.assembly import build_trainer
from fovea_detr.config.batching import Batching
from fovea_detr.config.checks import check_start
from fovea_detr.config.schema import Config
from fovea_detr.data.readers import fingerprints
from fovea_detr.errors import RunFolderError
from fovea_detr.machine import distributed
from fovea_detr.machine.device import choose_device, denormals_flushed
from fovea_detr.runs import provenance
from fovea_detr.runs.extension import origin_of
from fovea_detr.runs.folder import RunFolder
from fovea_detr.runs.heartbeat import Heartbeat
from fovea_detr.runs.host import Host, record_failures
from fovea_detr.runs.identity import note_left_out, refuse_other_batch, refuse_other_config, refuse_other_data
from fovea_detr.training import preflight
from fovea_detr.training.announce import announce
from fovea_detr.training.console import percent, summary
from fovea_detr.training.loop import Trainer
from fovea_detr.training.trackers import refuse_missing


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
