"""The checks of a configuration: choices, ranges, and rules between keys. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from fovea_detr.config.backbones import BACKBONES
from fovea_detr.config.schema import AXES, CONF_DIR, GENERATED, PANOPTIC, Cluster, Config, Data, Model, Schedule, leaves
from fovea_detr.errors import ConfigError

CHOICES = {
    "mode": ("train", "eval"),
    "device": ("auto", "cpu", "cuda"),
    "precision": ("fp32", "bf16"),
    "tracker": ("none", "tensorboard", "wandb", "mlflow", "trackio"),
    "model.backbone": tuple(BACKBONES),
    "model.batch_norm": ("frozen", "trainable"),
    "model.position": ("sine", "learned"),
    "model.loss": ("focal", "softmax"),
    "model.mask_prior": ("none", "last"),
    "schedule.kind": ("step", "cosine"),
    "data.name": tuple(sorted(path.stem for path in (CONF_DIR / "data").glob("*.yaml"))),
    "data.recipe": ("coco", "tiny"),
    "data.check": ("quick", "full"),
    "evaluation.backend": ("hotcoco", "pycocotools"),
    "panoptic.score": ("softmax", "sigmoid"),
}
MASK_WIDTHS = 16  # the mask head halves the width down to a sixteenth
MASK_PARTS = ("mask", "dice")
FREEZABLE = ("backbone", "encoder", "decoder")
PARTS = ("classification", "l1", "giou")
AT_LEAST_ONE = ("model.hidden", "model.heads", "model.decoder_layers", "model.feedforward", "model.num_queries")
AT_LEAST_ONE += ("schedule.epochs", "schedule.batch_size", "evaluation.every", "evaluation.batch_size")
AT_LEAST_ONE += ("data.long_side", "data.short_side", "data.max_side", "cluster.nodes", "cluster.gpus", "cluster.cpus")
ABOVE_ZERO = ("fovea.smooth", "schedule.lr", "schedule.usual_lr", "checkpoint.minutes", "cluster.hours")
ABOVE_ZERO += ("cluster.signal_minutes", "cluster.stall_minutes")
AT_LEAST_ZERO = ("model.encoder_layers", "schedule.lr_backbone", "schedule.weight_decay", "schedule.clip")
AT_LEAST_ZERO += tuple(f"model.{node}.{part}" for node in ("loss_weights", "match_costs") for part in PARTS)
AT_LEAST_ZERO += tuple(f"model.loss_weights.{part}" for part in MASK_PARTS)
AT_LEAST_ZERO += ("cluster.retries", "data.workers", "data.split_seed", "seed", "evaluation.timed_images")
AT_LEAST_ZERO += ("evaluation.keep_matches",)
DATA_FILES = ("data.root", "data.train.annotations", "data.train.images", "data.val.annotations", "data.val.images")
DATA_FILES += ("data.val_fraction", "data.panoptic_root")
# Cross-axis rules: (axis, value) -> another axis, and its allowed values. All others, new ones among them, are refused.
WORKS_WITH = {("kernel", "laplace"): ("dynamic_scale", ("type1", "type2", "type3"))}  # no product term

# What a model, a mode or data do not read: (leaf, its value as text) -> nodes, leaves. Blank in tables; no condition
# holds on it.
MASK_KEYS = ("model.mask_prior", "model.freeze_detector", *(f"model.loss_weights.{part}" for part in MASK_PARTS))
UNREAD = {("model.fovea", "false"): (*AXES, "fovea", "model.mask_prior")}
UNREAD |= {("mode", "eval"): ("schedule", "train", "model.freeze_detector")}
UNREAD |= {("model.masks", "false"): (*MASK_KEYS, "panoptic")}
UNREAD |= {("data", name): ("panoptic",) for name in CHOICES["data.name"] if name not in PANOPTIC}


def unread(settings: Mapping[str, str]) -> set[str]:
    """The keys that a run with these settings (key -> text) does not read: for plain DETR `dynamic_scale`, ..."""
    return {node for (leaf, value), nodes in UNREAD.items() if settings.get(leaf) == value for node in nodes}


def check(config: Config) -> None:
    """Raise ConfigError at the first invalid value."""
    values = leaves(config)
    for key, choices in CHOICES.items():
        _refuse(values[key] not in choices, f"{key}={values[key]} is not one of {', '.join(choices)}")
    for keys, is_invalid, rule in (
        (AT_LEAST_ONE, lambda v: v < 1, "must be at least 1"),
        (ABOVE_ZERO, lambda v: not 0 < v < math.inf, "must be above 0 and finite"),
        (AT_LEAST_ZERO, lambda v: not 0 <= v < math.inf, "must not be negative, and finite"),
    ):
        for key in keys:
            _refuse(is_invalid(values[key]), f"{key}={values[key]} {rule}")
    _check_model(config.model)
    _check_schedule(config.schedule)
    _check_axes(config)
    _check_data(config.data)
    check_panoptic(config)
    _check_cluster(config.cluster)
    _refuse(
        not re.fullmatch(r"[^./\\][^/\\]*", config.study),
        f"study={config.study} is a folder below runs={config.runs}: give it a name without / that begins with no dot",
    )
    _check_extend(config)
    _check_train(config)
    _refuse(config.threads is not None and config.threads < 1, f"threads={config.threads} must be at least 1")
    _refuse(
        config.mode == "eval" and config.weights is None,
        "mode=eval has nothing to evaluate: add weights=PATH (a checkpoint of ours, of DETR's or of SMCA's)",
    )
    _refuse(
        config.compile and config.mode == "eval",
        "compile=true compiles training, and mode=eval trains nothing: leave compile out",
    )
    _refuse(
        config.compile and config.model.freeze_detector,
        "compile=true compiles the training of backbone and encoder, which model.freeze_detector=true does not train: "
        "leave compile out",
    )
    _refuse(
        config.compile and not BACKBONES[config.model.backbone].compiles,
        f"compile=true: torch.compile does not work with model.backbone={config.model.backbone}; use compile=false",
    )
    _refuse(
        config.evaluation.losses and config.mode == "eval",
        "evaluation.losses=true logs losses of training, and mode=eval trains nothing: leave it out",
    )
    missing = config.weights is not None and not Path(config.weights).expanduser().is_file()
    _refuse(missing, f"weights={config.weights}: there is no such file")


def check_start(config: Config) -> None:
    """What a run needs that its configuration alone, as in a checkpoint, does not: ConfigError."""
    _refuse(
        config.model.freeze_detector and config.mode == "train" and config.weights is None,
        "model.freeze_detector=true trains the mask head of a trained detector: add weights=PATH, its checkpoint",
    )


def _check_extend(config: Config) -> None:
    extend, epochs = config.extend, config.schedule.epochs
    if extend is None:
        return
    _refuse(config.mode == "eval", f"extend={extend} trains on, and mode=eval trains nothing: leave one of them out")
    _refuse(
        extend <= epochs,
        f"extend={extend} is not beyond the end of the run that it extends (schedule.epochs={epochs}): name the last "
        f"epoch, for example extend={epochs + 20}, and leave schedule.epochs as it was",
    )


def _check_train(config: Config) -> None:
    train = config.train
    _refuse(
        config.model.freeze_detector and train.freeze != "none",
        f"train.freeze={train.freeze}: model.freeze_detector=true freezes these parts already: leave one of them out",
    )
    unknown = [part for part in train.freeze.split("+") if part not in FREEZABLE]
    _refuse(
        train.freeze != "none" and bool(unknown),
        f"train.freeze={train.freeze}: choose none or among {', '.join(FREEZABLE)}; several: {'+'.join(FREEZABLE[:2])}",
    )
    stop = train.early_stop
    _refuse(stop is not None and stop < 1, f"train.early_stop={stop} must be at least 1 evaluation; null: never")
    _refuse(
        train.ema is not None and not 0 < train.ema < 1,
        f"train.ema={train.ema} is a decay between 0 and 1, such as 0.999; null: no averaged weights",
    )


def _check_cluster(cluster: Cluster) -> None:
    _refuse(
        cluster.hours * 60 <= cluster.signal_minutes,
        f"cluster.hours={cluster.hours:g} is {cluster.hours * 60:g} min, of which the last cluster.signal_minutes="
        f"{cluster.signal_minutes:g} are for saving: a job would be stopped as soon as it starts; raise the hours",
    )
    _refuse(
        cluster.max_restarts is not None and cluster.max_restarts < 0,
        f"cluster.max_restarts={cluster.max_restarts} must not be negative; null: no limit",
    )


def _check_axes(config: Config) -> None:
    for axis in AXES:
        _refuse("_target_" not in getattr(config, axis), f"{axis} has no _target_: choose {axis}=..., see conf/{axis}/")
    for (axis, value), (other, allowed) in WORKS_WITH.items():
        found = getattr(config, other).get("name")
        _refuse(
            config.model.fovea and getattr(config, axis).get("name") == value and found not in allowed,
            f"{axis}={value} does not work with {other}={found}: choose {other}={', '.join(allowed)} or another {axis}",
        )


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
    _check_backbone(model)
    _check_masks(model)


def _check_masks(model: Model) -> None:
    usual, values = leaves(Model(), "model"), leaves(model, "model")
    for key in MASK_KEYS:
        _refuse(
            not model.masks and values[key] != usual[key],
            f"{key}={str(values[key]).lower()} needs a mask head: add model.masks=true, or leave it out",
        )
    _refuse(
        model.mask_prior != "none" and not model.fovea,
        f"model.mask_prior={model.mask_prior} adds the fovea's prior, and model={model.name} has none: leave it out",
    )
    _refuse(
        model.masks and model.hidden % MASK_WIDTHS != 0,
        f"model.masks=true: the head's last width is model.hidden / {MASK_WIDTHS}, and model.hidden={model.hidden} is "
        f"no multiple of {MASK_WIDTHS}",
    )


def _check_backbone(model: Model) -> None:
    spec = BACKBONES[model.backbone]
    dilated = " or ".join(name for name, other in BACKBONES.items() if other.dc5)
    _refuse(
        model.dc5 and not spec.dc5,
        f"model.dc5=true needs dilated bottlenecks: model.backbone={dilated}, not {model.backbone}",
    )
    _refuse(
        model.batch_norm == "trainable" and not spec.batch_norm,
        f"model.batch_norm=trainable: model.backbone={model.backbone} has no batch norm; set model.batch_norm=frozen, "
        "which has no effect on it",
    )
    named = model.backbone_weights not in ("imagenet", "none")
    lost = named and not Path(model.backbone_weights).expanduser().is_file()
    _refuse(lost, f"model.backbone_weights={model.backbone_weights}: no such file (or write imagenet, or none)")
    _refuse(
        model.backbone_weights == "imagenet" and not spec.imagenet,
        f"model.backbone={model.backbone} has no ImageNet weights: set model.backbone_weights=none",
    )


def _check_data(data: Data) -> None:
    _refuse(not 0 <= data.max_flawed <= 1, f"data.max_flawed={data.max_flawed} is a share of the objects, 0..1")
    _refuse(
        data.recipe == "coco" and data.long_side != Data().long_side,
        f"data.long_side={data.long_side} has no effect with data.recipe=coco: add data.recipe=tiny",
    )
    sides, usual = (data.short_side, data.max_side), (Data().short_side, Data().max_side)
    _refuse(
        data.recipe == "tiny" and sides != usual,
        "data.short_side and data.max_side have no effect with data.recipe=tiny: set data.long_side",
    )
    _refuse(
        data.max_side < data.short_side, f"data.max_side={data.max_side} is below {data.short_side}, the short side"
    )
    _refuse(data.subset is not None and data.subset < 1, f"data.subset={data.subset} must be at least 1; null: all")
    _refuse(data.num_classes is not None and data.num_classes < 1, "data.num_classes must be at least 1")
    _check_data_files(data, {key: value for key, value in leaves(data, "data").items() if key in DATA_FILES})


def check_panoptic(config: Config) -> None:
    """The panoptic merge with model, data and batch: ConfigError."""
    panoptic, data = config.panoptic, config.data
    _refuse(data.masks != config.model.masks, f"data.masks={data.masks} follows model.masks: leave it out")
    _refuse(
        data.val_fraction > 0 and data.name == "coco_panoptic",
        f"data.val_fraction={data.val_fraction} does not work with data=coco_panoptic: its splits have their own files",
    )
    _refuse(
        data.panoptic_root is not None and data.name != "coco_panoptic",
        f"data.panoptic_root={data.panoptic_root} is read by data=coco_panoptic alone: add that, or leave it out",
    )
    chosen, threshold = panoptic.score, panoptic.threshold
    _refuse(
        threshold is not None and not 0 <= threshold < 1,
        f"panoptic.threshold={threshold} is a score, 0..1 (1 excluded)",
    )
    if not config.model.masks or data.name not in PANOPTIC:
        return
    _refuse(
        (chosen == "softmax") != (config.model.loss == "softmax"),
        f"panoptic.score={chosen} does not work with model.loss={config.model.loss}: the published merge needs the "
        'class "no object", which a focal loss does not have; set panoptic.score=sigmoid panoptic.threshold=SCORE',
    )
    _refuse(
        chosen == "sigmoid" and threshold is None,
        "panoptic.score=sigmoid needs a panoptic.threshold=SCORE of its own: 0.85 was chosen for softmax",
    )
    size = config.evaluation.batch_size
    _refuse(
        size > 1 and not panoptic.crop,
        f"evaluation.batch_size={size} stretches the masks of padded images in the published panoptic merge: set "
        "evaluation.batch_size=1, or panoptic.crop=true (this project's own: the padding is cut off first)",
    )


def _check_data_files(data: Data, files: dict[str, str | float | None]) -> None:
    for key, value in files.items():
        _refuse(
            data.name in GENERATED and value not in (None, 0),
            f"{key}={value}: data.name={data.name} generates its images and reads no files; add data=coco to train on "
            f"your own data, or remove {key}",
        )
    for split in ("train", "val"):
        values = {part: files[f"data.{split}.{part}"] for part in ("annotations", "images")}
        for part, other in (("annotations", "images"), ("images", "annotations")):
            _refuse(
                values[part] is not None and values[other] is None,
                f"data.{split}.{part}={values[part]} needs data.{split}.{other}=PATH as well",
            )
    _refuse(not 0 <= data.val_fraction < 1, f"data.val_fraction={data.val_fraction} must be in 0..1 (1 excluded)")
    _refuse(
        data.val_fraction > 0 and data.val.annotations is not None,
        f"data.val_fraction={data.val_fraction} takes the validation set from the training file, but "
        "data.val.annotations names one: remove one of the two",
    )


def _check_schedule(schedule: Schedule) -> None:
    _refuse(
        schedule.lr >= 10 * schedule.usual_lr * (1 - 1e-9),
        f"schedule.lr={schedule.lr:g} is {schedule.lr / schedule.usual_lr:.0f} times the usual one: did you mean "
        f"schedule.lr={schedule.usual_lr:g}? If you do mean it, set schedule.usual_lr={schedule.lr:g} as well",
    )
    total = schedule.total_batch
    _refuse(total is not None and total < 1, f"schedule.total_batch={total} must be at least 1; null: no fixed total")
    _refuse(not 0 <= schedule.warmup < 1, f"schedule.warmup={schedule.warmup} is a fraction of all steps, 0..1")
    if schedule.kind == "step":
        _refuse(
            schedule.lr_drop is None,
            "schedule.lr_drop is not set: kind=step divides the learning rate by 10 after every lr_drop epochs",
        )
        assert schedule.lr_drop is not None
        _refuse(
            not 0 < schedule.lr_drop < schedule.epochs,
            f"schedule.lr_drop={schedule.lr_drop} is not inside the run (schedule.epochs={schedule.epochs}): "
            "set a drop before the end",
        )


def _refuse(condition: bool, message: str) -> None:
    if condition:
        raise ConfigError(message)
