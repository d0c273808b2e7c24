"""What the log says at the start of a run: its data, its size, where it goes on."""

from __future__ import annotations

from collections.abc import Iterator

from fovea_detr.config.schema import Config
from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.flaws import shown
from fovea_detr.data.readers import describe_layout
from fovea_detr.machine.device import bfloat16_instructions
from fovea_detr.training.loop import Trainer

NAMES_SHOWN = 6  # of classes


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
