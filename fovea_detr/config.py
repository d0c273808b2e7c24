"""The whole typed schema of a run, its range checks, and the way from Hydra's composition to it. Imports no torch.

Every leaf here is a key of the command line (`schedule.epochs=12`). Values and their meaning: `conf/`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Optional

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fovea_detr.errors import ConfigError

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"

# Leaves that say where and how a run is carried out, not what it computes: changing them never makes another run.
INFRASTRUCTURE = {"runs", "study", "device", "threads", "tracker", "cluster", "checkpoint", "data.root", "data.cache"}
INFRASTRUCTURE |= {"data.workers", "data.check", "evaluation.save_predictions"}
INFRASTRUCTURE |= {"evaluation.backend"}  # both give the same numbers


@dataclass
class LossWeights:
    classification: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


@dataclass
class Model:
    name: str = "fovea_r50"
    fovea: bool = True  # False: plain DETR
    backbone: str = "resnet50"  # resnet18 | resnet34 | resnet50 | resnet101 | tiny
    backbone_weights: str = "imagenet"  # imagenet | none | PATH of a torchvision ResNet
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
    match_costs: LossWeights = field(default_factory=LossWeights)


@dataclass
class Fovea:
    smooth: float = 8.0


@dataclass
class Schedule:
    name: str = "50ep"
    kind: str = "step"  # step | cosine
    epochs: int = 50
    lr_drop: Optional[int] = 40  # noqa: UP045 - OmegaConf 2.3 reads annotations at run time on Python 3.10
    lr: float = 1e-4
    lr_backbone: float = 1e-5
    usual_lr: float = 1e-4  # ten times this is taken for a slip of the keyboard
    warmup: float = 0.0  # fraction of all steps
    weight_decay: float = 1e-4
    clip: float = 0.1  # largest norm of the gradient; 0 switches clipping off
    batch_size: int = 4  # images per process (per GPU)
    usual_total_batch: int = 16


@dataclass
class Data:
    name: str = "coco"
    root: Optional[str] = None  # noqa: UP045
    cache: str = ".cache"
    recipe: str = "coco"  # coco | tiny: the augmentation and the evaluation size
    num_classes: Optional[int] = None  # noqa: UP045 - None: highest category id + 1, read from the annotations
    train_images: int = 0  # of the generated data set
    val_images: int = 0
    in_memory: bool = False
    bucketing: bool = False
    workers: int = 4
    check: str = "quick"  # quick | full


@dataclass
class Evaluation:
    every: int = 1  # epochs
    batch_size: int = 4
    backend: str = "faster_coco_eval"  # faster_coco_eval | pycocotools
    save_predictions: bool = False
    timed_images: int = 100


@dataclass
class Checkpoint:
    minutes: float = 10.0


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
    setup: list[str] = field(default_factory=list)
    python: Optional[str] = None  # noqa: UP045
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Config:
    study: str = "default"
    runs: str = "runs"
    mode: str = "train"  # train | eval
    weights: Optional[str] = None  # noqa: UP045
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda
    precision: str = "fp32"  # fp32 | bf16
    compile: bool = False
    threads: Optional[int] = None  # noqa: UP045
    tracker: str = "none"  # none | tensorboard
    model: Model = field(default_factory=Model)
    fovea: Fovea = field(default_factory=Fovea)
    dynamic_scale: dict[str, Any] = field(default_factory=dict)
    mixture: dict[str, Any] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Schedule)
    data: Data = field(default_factory=Data)
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    cluster: Cluster = field(default_factory=Cluster)


CHOICES = {
    "mode": ("train", "eval"),
    "device": ("auto", "cpu", "cuda"),
    "precision": ("fp32", "bf16"),
    "tracker": ("none", "tensorboard"),
    "model.backbone": ("resnet18", "resnet34", "resnet50", "resnet101", "tiny"),
    "model.batch_norm": ("frozen", "trainable"),
    "model.position": ("sine", "learned"),
    "model.loss": ("focal", "softmax"),
    "schedule.kind": ("step", "cosine"),
    "data.name": ("coco", "shapes"),
    "data.recipe": ("coco", "tiny"),
    "data.check": ("quick", "full"),
    "evaluation.backend": ("faster_coco_eval", "pycocotools"),
}
PARTS = ("classification", "l1", "giou")
AT_LEAST_ONE = ("model.hidden", "model.heads", "model.decoder_layers", "model.feedforward", "model.num_queries")
AT_LEAST_ONE += ("schedule.epochs", "schedule.batch_size", "evaluation.every", "evaluation.batch_size")
AT_LEAST_ONE += ("cluster.nodes", "cluster.gpus", "cluster.cpus")
ABOVE_ZERO = ("fovea.smooth", "schedule.lr", "schedule.usual_lr", "checkpoint.minutes", "cluster.hours")
ABOVE_ZERO += ("cluster.signal_minutes",)
AT_LEAST_ZERO = ("model.encoder_layers", "schedule.lr_backbone", "schedule.weight_decay", "schedule.clip")
AT_LEAST_ZERO += tuple(f"model.{node}.{part}" for node in ("loss_weights", "match_costs") for part in PARTS)
AT_LEAST_ZERO += ("data.workers", "seed", "evaluation.timed_images")


def parse(composed: DictConfig) -> Config:
    """Hydra's composition -> the typed, range-checked Config. Raises ConfigError, one line, at the first mistake."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), composed)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        where = error.full_key or "the configuration"
        raise ConfigError(f"{where}: {str(error).splitlines()[0]}; see `python run.py --help`") from None
    assert isinstance(config, Config)
    check(config)
    return config


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
    """Whether a dotted key, or any of its parents, says only where and how the run is carried out."""
    parts = key.split(".")
    return any(".".join(parts[: i + 1]) in INFRASTRUCTURE for i in range(len(parts)))


def check(config: Config) -> None:
    """Raise ConfigError at the first value that cannot be meant."""
    values = leaves(config)
    for key, choices in CHOICES.items():
        _refuse(values[key] not in choices, f"{key}={values[key]} is not one of {', '.join(choices)}")
    for keys, low, words in (
        (AT_LEAST_ONE, lambda v: v < 1, "must be at least 1"),
        (ABOVE_ZERO, lambda v: not 0 < v < math.inf, "must be above 0 and finite"),
        (AT_LEAST_ZERO, lambda v: not 0 <= v < math.inf, "must not be negative, and finite"),
    ):
        for key in keys:
            _refuse(low(values[key]), f"{key}={values[key]} {words}")
    _check_model(config.model)
    _check_schedule(config.schedule)
    for axis in ("dynamic_scale", "mixture"):
        _refuse("_target_" not in getattr(config, axis), f"{axis} has no _target_: choose {axis}=..., see conf/{axis}/")
    _refuse(config.data.num_classes is not None and config.data.num_classes < 1, "data.num_classes must be at least 1")
    _refuse(config.threads is not None and config.threads < 1, f"threads={config.threads} must be at least 1")
    _refuse(
        config.mode == "eval" and config.weights is None,
        "mode=eval has nothing to evaluate: add weights=PATH (a checkpoint of ours, of DETR's or of SMCA's)",
    )
    _refuse(
        config.compile and config.mode == "eval",
        "compile=true compiles training, and mode=eval trains nothing: leave compile out",
    )
    missing = config.weights is not None and not Path(config.weights).expanduser().is_file()
    _refuse(missing, f"weights={config.weights}: there is no such file")


def _check_model(model: Model) -> None:
    _refuse(
        model.hidden % model.heads != 0,
        f"model.heads={model.heads} does not divide model.hidden={model.hidden}; choose a divisor",
    )
    halves = 4 if model.position == "sine" else 2
    _refuse(
        model.hidden % halves != 0, f"model.hidden={model.hidden} must be a multiple of {halves} ({model.position})"
    )
    _refuse(not 0 <= model.dropout < 1, f"model.dropout={model.dropout} must be in 0..1 (1 excluded)")
    shallow = model.dc5 and model.backbone not in ("resnet50", "resnet101")
    _refuse(
        shallow, f"model.dc5=true needs dilated bottlenecks: model.backbone=resnet50 or resnet101, not {model.backbone}"
    )
    named = model.backbone_weights not in ("imagenet", "none")
    lost = named and not Path(model.backbone_weights).expanduser().is_file()
    _refuse(lost, f"model.backbone_weights={model.backbone_weights}: no such file (or write imagenet, or none)")
    _refuse(
        model.backbone == "tiny" and model.backbone_weights == "imagenet",
        "model.backbone=tiny has no ImageNet weights: set model.backbone_weights=none",
    )


def _check_schedule(schedule: Schedule) -> None:
    slip = schedule.lr >= 10 * schedule.usual_lr * (1 - 1e-9)
    _refuse(
        slip,
        f"schedule.lr={schedule.lr:g} is {schedule.lr / schedule.usual_lr:.0f} times the usual one: did you mean "
        f"schedule.lr={schedule.usual_lr:g}? If you do mean it, set schedule.usual_lr={schedule.lr:g} as well",
    )
    _refuse(not 0 <= schedule.warmup < 1, f"schedule.warmup={schedule.warmup} is a fraction of all steps, 0..1")
    if schedule.kind == "step":
        _refuse(schedule.lr_drop is None, "schedule.lr_drop is not set: kind=step drops the learning rate once")
        assert schedule.lr_drop is not None
        _refuse(
            not 0 < schedule.lr_drop < schedule.epochs,
            f"schedule.lr_drop={schedule.lr_drop} is not inside the run (schedule.epochs={schedule.epochs}): "
            "set a drop before the end",
        )


def _refuse(condition: bool, message: str) -> None:
    if condition:
        raise ConfigError(message)
