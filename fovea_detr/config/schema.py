"""The typed schema of a run. Imports no torch.

Every leaf here is a key of the command line (`schedule.epochs=12`). Values and their meaning: `conf/`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Optional

_PACKAGED = Path(__file__).parent.parent / "conf"  # in a checkout a link to ../conf, or a file if its zip lost the link
CONF_DIR = (_PACKAGED if _PACKAGED.is_dir() else _PACKAGED.parent.parent / "conf").resolve()

PANOPTIC = {"coco_panoptic", "shapes_panoptic"}  # the values of data.name that have panoptic annotations
GENERATED = {"shapes", "shapes_panoptic"}  # they make their images: they read no files, no data.root

# Keys of where and how a run is executed, not of what it computes: changing them never makes another run.
INFRASTRUCTURE = {"runs", "study", "device", "threads", "tracker", "cluster", "checkpoint", "data.root", "data.cache"}
INFRASTRUCTURE |= {"data.panoptic_root", "data.masks"}  # as data.root; it follows model.masks
INFRASTRUCTURE |= {"data.train", "data.val"}  # paths: the fingerprint of their content is part of a run
INFRASTRUCTURE |= {"data.workers", "data.check", "data.max_flawed", "evaluation.save_predictions"}
INFRASTRUCTURE |= {"evaluation.keep_matches", "evaluation.losses"}
INFRASTRUCTURE |= {"evaluation.backend"}  # both give the same numbers


@dataclass
class MatchCosts:
    classification: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


@dataclass
class LossWeights(MatchCosts):
    mask: float = 1.0  # this and dice: with model.masks=true, of the last decoder layer
    dice: float = 1.0


@dataclass
class Model:
    name: str = "fovea_r50"
    fovea: bool = True  # False: plain DETR
    backbone: str = "resnet50"  # a key of BACKBONES, config/backbones.py
    backbone_weights: str = "imagenet"  # imagenet | none | PATH of the same torchvision network's state dict
    batch_norm: str = "frozen"  # frozen | trainable
    dc5: bool = False
    hidden: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    feedforward: int = 2048
    dropout: float = 0.1
    num_queries: int = 300
    position: str = "sine"  # sine | learned
    pre_norm: bool = False
    loss: str = "focal"  # focal | softmax
    loss_weights: LossWeights = field(default_factory=LossWeights)
    match_costs: MatchCosts = field(default_factory=MatchCosts)
    masks: bool = False
    mask_prior: str = "none"  # none | last
    freeze_detector: bool = False  # train the mask head alone


@dataclass
class Fovea:
    smooth: float = 8.0
    cell_centre: bool = False


@dataclass
class Schedule:
    name: str = "50ep"
    kind: str = "step"  # step | cosine
    epochs: int = 50
    lr_drop: Optional[int] = 40  # noqa: UP045 - OmegaConf 2.3 reads annotations at run time on Python 3.10
    lr: float = 1e-4
    lr_backbone: float = 1e-5
    usual_lr: float = 1e-4  # an lr of ten times this, or more, is rejected as a typo
    warmup: float = 0.0  # fraction of all steps
    weight_decay: float = 1e-4
    clip: float = 0.1  # largest norm of the gradient; 0 switches clipping off
    batch_size: int = 4  # images per process (per GPU); with total_batch, of one forward pass at most
    total_batch: Optional[int] = None  # noqa: UP045 - images of one step, over all processes; None: batch_size times those
    usual_total_batch: int = 16


@dataclass
class SplitFiles:
    annotations: Optional[str] = None  # noqa: UP045 - None: found below data.root
    images: Optional[str] = None  # noqa: UP045


@dataclass
class Data:
    name: str = "coco"
    root: Optional[str] = None  # noqa: UP045
    panoptic_root: Optional[str] = None  # noqa: UP045 - None: as root
    masks: bool = False  # follows model.masks
    train: SplitFiles = field(default_factory=SplitFiles)
    val: SplitFiles = field(default_factory=SplitFiles)
    val_fraction: float = 0.0  # 0: the validation set has a file of its own
    split_seed: int = 0
    cache: str = ".cache"
    recipe: str = "coco"  # coco | tiny: the augmentation and the evaluation size
    long_side: int = 128  # pixels, of recipe=tiny
    short_side: int = 800  # pixels, of recipe=coco
    max_side: int = 1333  # pixels, of recipe=coco
    subset: Optional[int] = None  # noqa: UP045 - the first images of each split, for debugging; None: all
    num_classes: Optional[int] = None  # noqa: UP045 - None: highest category id + 1, read from the annotations
    train_images: int = 0  # of the generated data set
    val_images: int = 0
    in_memory: bool = False
    bucketing: bool = False
    workers: int = 4
    check: str = "quick"  # quick | full
    max_flawed: float = 0.01  # share of the objects; only refuses, so that it makes no other run


@dataclass
class Evaluation:
    every: int = 1  # epochs
    batch_size: int = 4
    backend: str = "hotcoco"  # hotcoco | pycocotools
    losses: bool = False
    save_predictions: bool = False
    keep_matches: int = 0  # epochs between stored matches; those of the last evaluation are always stored
    timed_images: int = 100


@dataclass
class Panoptic:
    score: str = "softmax"  # softmax | sigmoid
    threshold: Optional[float] = None  # noqa: UP045 - None: 0.85, of score=softmax
    crop: bool = False


@dataclass
class Train:
    freeze: str = "none"  # none | parts of FREEZABLE, config/checks.py, joined by +
    early_stop: Optional[int] = None  # noqa: UP045 - evaluations without a better AP
    ema: Optional[float] = None  # noqa: UP045 - decay of the averaged weights; None: none


@dataclass
class Checkpoint:
    minutes: float = 10.0
    best: bool = False


@dataclass
class Cluster:
    name: str = "vc_research"
    partition: Optional[str] = "vc_research"  # noqa: UP045
    nodes: int = 1
    gpus: int = 4  # per node; one process per GPU
    cpus: int = 32  # per node, in all
    hours: float = 48.0
    mem_gb: Optional[float] = None  # noqa: UP045 - per node
    account: Optional[str] = None  # noqa: UP045
    qos: Optional[str] = None  # noqa: UP045
    constraint: Optional[str] = None  # noqa: UP045
    mail: Optional[str] = None  # noqa: UP045
    signal_minutes: float = 5.0
    stall_minutes: float = 10.0
    max_restarts: Optional[int] = None  # noqa: UP045
    setup: list[str] = field(default_factory=list)
    python: Optional[str] = None  # noqa: UP045
    retries: int = 0  # of a point that fails, not for NaN, bad data or a bad configuration
    local_code: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Config:
    study: str = "default"
    runs: str = "runs"
    mode: str = "train"  # train | eval
    weights: Optional[str] = None  # noqa: UP045
    seed: int = 0
    extend: Optional[int] = None  # noqa: UP045 - the last epoch of a run that begins where the same run without it ended
    device: str = "auto"  # auto | cpu | cuda
    precision: str = "fp32"  # fp32 | bf16
    compile: bool = False
    threads: Optional[int] = None  # noqa: UP045
    tracker: str = "none"  # none | tensorboard | wandb | mlflow | trackio
    model: Model = field(default_factory=Model)
    fovea: Fovea = field(default_factory=Fovea)
    dynamic_scale: dict[str, Any] = field(default_factory=dict)
    mixture: dict[str, Any] = field(default_factory=dict)
    kernel: dict[str, Any] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Schedule)
    train: Train = field(default_factory=Train)
    data: Data = field(default_factory=Data)
    evaluation: Evaluation = field(default_factory=Evaluation)
    panoptic: Panoptic = field(default_factory=Panoptic)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    cluster: Cluster = field(default_factory=Cluster)

    @property
    def last_epoch(self) -> int:
        """The epoch with which training ends."""
        return self.extend or self.schedule.epochs


# The nodes whose classes conf/<axis>/ names by `_target_`: a run is compared by their `name`.
AXES = tuple(f.name for f in fields(Config) if f.default_factory is dict)


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of a (nested) config by its dotted key, the key of the command line."""
    if is_dataclass(node):
        node = {f.name: getattr(node, f.name) for f in fields(node)}
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        key: value
        for name, child in node.items()
        for key, value in leaves(child, f"{prefix}.{name}" if prefix else name).items()
    }


def is_infrastructure(key: str) -> bool:
    """Whether a dotted key, or any of its parents, is one of where and how the run is executed."""
    parts = key.split(".")
    return any(".".join(parts[: i + 1]) in INFRASTRUCTURE for i in range(len(parts)))
