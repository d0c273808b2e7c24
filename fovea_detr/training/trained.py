"""What a checkpoint was trained with, by its configuration or a published one's arguments; evaluation with the same."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from fovea_detr.config.checks import MASK_KEYS, check_panoptic
from fovea_detr.config.schema import AXES, Config, Data
from fovea_detr.errors import ConfigError, WeightsError
from fovea_detr.model.published import in_our_names, is_torchvision
from fovea_detr.runs.host import process_rank
from fovea_detr.runs.settings import settings
from fovea_detr.runs.stored import Stored
from fovea_detr.training.files import read, tensors_of

# Settings of the model that change no evaluation.
OF_TRAINING = ("model.backbone_weights", "model.batch_norm", "model.dropout", "model.loss_weights", "model.match_costs")
OF_TRAINING += ("model.freeze_detector",)
OF_MASKS = ("masks", *dict.fromkeys(key.split(".")[1] for key in MASK_KEYS))  # keys of `model` that need a mask head
ARGUMENTS = {  # of the published training script -> keys of `model`
    "hidden_dim": "hidden",
    "nheads": "heads",
    "enc_layers": "encoder_layers",
    "dec_layers": "decoder_layers",
    "dim_feedforward": "feedforward",
    "num_queries": "num_queries",
    "dropout": "dropout",
    "pre_norm": "pre_norm",
    "position_embedding": "position",
    "backbone": "backbone",
    "dilation": "dc5",
    "masks": "masks",
}
MIXTURE_ARGUMENTS = ("head_mixture", "query_mixture")
MIXTURES = {(False, False): "none", (True, False): "head", (False, True): "query", (True, True): "head_query"}
OTHER_DATA = ("data.name", "data.root", "data.train.", "data.val.", "data.val_fraction", "data.split_seed")
GROUPS = {"smooth": "fovea.smooth"}  # a group that sets a leaf elsewhere


def trained_config(content: Mapping[str, Any], source: str, base: Config) -> Config | None:
    """The configuration of a checkpoint's training, with neither initial weights nor mode; None if it is not known.

    Of a published checkpoint only its arguments are known: the rest is as in `base`. Raises WeightsError.
    """
    text, arguments = content.get("config"), content.get("args")
    fields = _mapping(text)
    if isinstance(arguments, argparse.Namespace):
        fields = _of_published(vars(arguments), tensors_of(dict(content), source), base)
    if fields is None:
        return None
    fields |= {"mode": "train", "weights": None, "compile": False}
    fields["model"] = {**fields["model"], "backbone_weights": "none"}
    try:
        return Stored(yaml.safe_dump(fields, sort_keys=False)).config()
    except ConfigError as error:
        raise WeightsError(
            f"{source}: it was trained with a configuration that this version refuses: {error}"
        ) from None


def _mapping(text: object) -> dict[str, Any] | None:
    """A configuration of ours; None for what another program stores under this name."""
    try:
        found = yaml.safe_load(text) if isinstance(text, str) else None
    except yaml.YAMLError:
        return None
    is_ours = isinstance(found, dict) and all(isinstance(found.get(key), dict) for key in ("model", "fovea", "data"))
    return found if is_ours else None


def class_names(content: Mapping[str, Any]) -> dict[int, str] | None:
    """A checkpoint's class names by output; None for what another program stores under this name."""
    names = content.get("categories")
    if not isinstance(names, Mapping):
        return None
    is_ours = all(isinstance(output, int) and isinstance(name, str) for output, name in names.items())
    return dict(names) if is_ours else None


def model_settings(config: Config) -> dict[str, str]:
    """The settings that a model's outputs depend on, besides its weights and what their names show."""
    nodes = ("model", "fovea", *AXES) if config.model.fovea else ("model",)
    shown = ("model.masks",) if config.model.masks else ("model.masks", "model.mask_prior")
    return {
        key: value
        for key, value in settings(config).items()
        if key.split(".")[0] in nodes and key != "model" and not key.startswith((*OF_TRAINING, *shown))
    }


def model_differences(trained: Config, config: Config) -> list[str]:
    """`key: trained -> now` for each of these settings that differs."""
    before, now = model_settings(trained), model_settings(config)
    return [f"{key}: {before[key]} -> {now[key]}" for key in before if now.get(key, before[key]) != before[key]]


def num_classes(content: Mapping[str, Any], source: str) -> int | None:
    """Of a checkpoint's class head; None if it has none."""
    head = in_our_names(tensors_of(dict(content), source)).get("class_head.weight")
    return None if head is None else len(head) - 1


def as_trained(config: Config, overrides: Sequence[str] = (), *, quiet: bool = False) -> Config:
    """With mode=eval: the configuration of `weights`, as far as the overrides do not name something else.

    Taken from the checkpoint: model, prior, evaluation size and number of classes, and the data if no override names
    any, and printed unless `quiet`. Raises WeightsError, one line, if an override differs from what was trained, and
    ConfigError if the two together are no valid configuration.
    """
    if config.mode != "eval":
        return config
    assert config.weights is not None
    content, typed = read(config.weights), _keys(overrides)
    trained = trained_config(content, config.weights, config)
    taken = config if trained is None else _taken_over(config, trained, typed)
    if (number := num_classes(content, config.weights)) is not None:
        taken = replace(taken, data=replace(taken.data, num_classes=number))
    before, now = settings(taken), settings(config)
    changed = {key: value for key, value in before.items() if now.get(key) != value}
    wrong = [key for key in changed if key in now and _is_typed(key, typed) and not key.startswith(OF_TRAINING)]
    if wrong:
        pairs = ", ".join(f"{key}={before[key]} (the command has {now[key]})" for key in wrong)
        raise WeightsError(
            f"{config.weights} was trained with {pairs}: leave {'it' if len(wrong) == 1 else 'them'} out to evaluate it"
        )
    check_panoptic(taken)  # a larger batch may not fit the merge of the checkpoint, which would stretch its masks
    if trained is not None and changed and not quiet and process_rank() == 0:
        print(f"from the checkpoint: {', '.join(f'{key}={value}' for key, value in changed.items())}", flush=True)
    return taken


def _taken_over(config: Config, trained: Config, typed: set[str]) -> Config:
    names_data = any(key == "data" or key.startswith(OTHER_DATA) for key in typed)
    data = _sizes(config.data if names_data else _data(config, trained, typed), trained.data)
    axes = {axis: getattr(trained, axis) for axis in AXES}
    evaluation = config.evaluation
    if not typed & {"evaluation.batch_size", "schedule.batch_size"}:  # AP depends on the padding
        evaluation = replace(evaluation, batch_size=trained.evaluation.batch_size)
    model = replace(trained.model, backbone_weights=config.model.backbone_weights)
    if "model.masks" in typed and not config.model.masks:
        model = replace(model, **{key: getattr(config.model, key) for key in OF_MASKS})
    data = replace(data, masks=model.masks)
    asked = {key: value for key, value in vars(config.panoptic).items() if f"panoptic.{key}" in typed}
    panoptic = replace(trained.panoptic, **asked)
    parts = {"model": model, "fovea": trained.fovea, "data": data, "evaluation": evaluation, "panoptic": panoptic}
    return replace(config, **parts, **axes)


def _sizes(here: Data, trained: Data) -> Data:
    """With the evaluation size of the training."""
    sizes = {key: getattr(trained, key) for key in ("recipe", "long_side", "short_side", "max_side")}
    return replace(here, **sizes)


def _data(config: Config, trained: Config, typed: set[str]) -> Data:
    """The data of the training, with the keys that are typed; its folder is today's if it has moved."""
    here, root = config.data, trained.data.root
    if root is not None and not Path(root).expanduser().is_dir():
        root = here.root
    today = {"cache", "workers", "check", "num_classes", *(key.removeprefix("data.") for key in typed)}
    return replace(trained.data, root=root, **{key: value for key, value in vars(here).items() if key in today})


def _keys(overrides: Sequence[str]) -> set[str]:
    keys = (override.lstrip("+~").partition("=")[0] for override in overrides)
    return {GROUPS.get(key, key) for key in keys}


def _is_typed(key: str, typed: set[str]) -> bool:
    """Whether an override names this key or its group. `data=NAME` names a reader, not the size of the evaluation."""
    groups = typed - {"data"}
    return any(key == name or key.startswith(f"{name}.") for name in groups)


def _of_published(arguments: dict[str, Any], state: Mapping[str, Tensor], base: Config) -> dict[str, Any] | None:
    """The arguments of the published training script, over `base`, as a configuration stores them; None of another."""
    known = {*ARGUMENTS, *MIXTURE_ARGUMENTS, "dynamic_scale", "smooth"}
    if is_torchvision(state) or not known & set(arguments):
        return None
    fields = asdict(base)
    model: dict[str, Any] = fields["model"]
    has_prior = any(".prior." in name for name in in_our_names(state))
    model |= {ours: arguments[name] for name, ours in ARGUMENTS.items() if name in arguments}
    if "eos_coef" in arguments or "focal_alpha" in arguments or has_prior:
        model["loss"] = "focal" if has_prior or "focal_alpha" in arguments else "softmax"
    model["fovea"] = has_prior
    fields["data"]["masks"] = model["masks"]
    if "dynamic_scale" in arguments:
        fields["dynamic_scale"] = {"name": arguments["dynamic_scale"]}
    if "smooth" in arguments:
        fields["fovea"]["smooth"] = arguments["smooth"]
    if set(MIXTURE_ARGUMENTS) & set(arguments):
        of_heads, of_queries = (bool(arguments.get(name)) for name in MIXTURE_ARGUMENTS)
        fields["mixture"] = {"name": MIXTURES[of_heads, of_queries]}
    model["name"] = _name(model) if model != asdict(base.model) else model["name"]
    return fields


def _name(model: Mapping[str, Any]) -> str:
    """The value of the group `model`."""
    family = "fovea" if model["fovea"] else "detr" if model["loss"] == "softmax" else "detr_focal"
    return f"{family}_{str(model['backbone']).replace('resnet', 'r')}{'_dc5' if model['dc5'] else ''}"
