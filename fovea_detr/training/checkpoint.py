"""Checkpoints: read files without executing code, load weights with a report of what fitted, save and read a run."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from fovea_detr.errors import WeightsError
from fovea_detr.model.published import in_our_names, is_torchvision
from fovea_detr.runs.folder import RunFolder, write_atomic

FORMAT = 1


@dataclass
class Loaded:
    """The result of `load_weights`, in our naming. skipped: names not loaded, and why; missing: left unchanged."""

    source: str
    loaded: int
    skipped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """One line for the log."""
        parts = [f"weights: {self.loaded} tensors from {self.source}"]
        if self.skipped:
            parts.append("skipped " + ", ".join(f"{name} ({why})" for name, why in self.skipped.items()))
        if self.missing:
            parts.append(f"left as initialised: {_names(self.missing)}")
        return "; ".join(parts)


def read(path: Path | str) -> dict[str, Any]:
    """A checkpoint file as a dict, on the CPU. No code in it is executed; an argparse.Namespace is allowed as data.

    Raises WeightsError, one line: no such file, not a checkpoint, truncated, or a pickle that needs to run code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's messages: "Unsupported global: GLOBAL x", or "unsupported GLOBAL x whose module ..".
        unsafe = "GLOBAL " in str(error)
        what = "it holds objects that only running code from it could load" if unsafe else "not a readable checkpoint"
        raise WeightsError(f"{path}: {what}; expected tensors by name, as torch.save writes a state dict") from None
    except Exception as error:  # torch.load of damaged bytes raises many types, some without a message
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise WeightsError(f"{path}: truncated or not a checkpoint ({reason})") from None
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, expected a state dict or a dict with 'model'")
    return dict(content)


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """The model's tensors by name, from a checkpoint (under 'model' or 'state_dict') or a bare state dict."""
    content = read(path)
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = dict(content[key])
            break
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: there are no tensors in it; expected a state dict or a dict with 'model'")
    return tensors


def load_weights(
    model: nn.Module,
    source: Path | str | Mapping[str, Tensor],
    *,
    other_classes: bool = False,
    backbone_alone: bool = True,
) -> Loaded:
    """Load a checkpoint (ours, DETR's or SMCA's naming, a torchvision network) or a state dict into a model, in place.

    other_classes: a class head of another size is skipped and reported instead of an error (finetuning).
    backbone_alone: a torchvision network, which fills only the backbone, is accepted.
    Raises WeightsError, one line, where anything else does not fit: the model is then unchanged.
    """
    name = "a state dict" if isinstance(source, Mapping) else str(source)
    theirs = dict(source) if isinstance(source, Mapping) else read_state_dict(source)
    only_backbone = is_torchvision(theirs)
    if only_backbone and not backbone_alone:
        raise WeightsError(
            f"{name}: a torchvision network fills only the backbone; a whole detector's checkpoint is needed"
        )
    theirs, ours = in_our_names(theirs), model.state_dict()
    report = Loaded(name, loaded=0)
    for key in [key for key in theirs if key in ours and theirs[key].shape != ours[key].shape]:
        why = f"{tuple(theirs[key].shape)} in the file, {tuple(ours[key].shape)} in the model"
        if not (other_classes and key.startswith("class_head.")):
            raise WeightsError(f"{name}: {key} is {why}; {_advice(key)}")
        report.skipped[key] = why
        del theirs[key]
    unknown = [key for key in theirs if key not in ours and not key.endswith("num_batches_tracked")]
    if unknown:
        raise WeightsError(f"{name}: the model has no {_names(unknown)}; choose the model that the file was made with")
    report.missing = [key for key in ours if key not in theirs and key not in report.skipped]
    lacking = [key for key in report.missing if not (only_backbone and not key.startswith("backbone."))]
    lacking = [key for key in lacking if not key.endswith("num_batches_tracked")]
    if lacking:
        raise WeightsError(f"{name}: the file has no {_names(lacking)}; choose the model that the file was made with")
    known = {key: value for key, value in theirs.items() if key in ours}
    model.load_state_dict(known, strict=False)
    report.loaded = len(known)
    return report


def pretrained_state(name: str, source: str) -> dict[str, Tensor]:
    """The state dict of torchvision's `name`. source: "imagenet" (a download that torch.hub caches) or a path.

    Raises WeightsError, one line, if the download fails or the file is not a checkpoint.
    """
    if source != "imagenet":
        return read_state_dict(Path(source).expanduser())
    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise WeightsError(
            f"the ImageNet weights of {name} could not be downloaded ({str(error) or type(error).__name__}): put "
            f"{weights.url.rsplit('/', 1)[-1]} into {folder}, or set model.backbone_weights=PATH (or none)"
        ) from None


def save(folder: RunFolder, content: Mapping[str, Any]) -> None:
    """Write checkpoint.pt atomically, and keep the previous one as checkpoint_before.pt."""
    if folder.checkpoint_path.exists():
        folder.checkpoint_path.replace(folder.checkpoint_before_path)
    write_atomic(folder.checkpoint_path, lambda file: torch.save({"format": FORMAT, **content}, file))


def latest(folder: RunFolder) -> dict[str, Any] | None:
    """The newest readable checkpoint of a run folder, or None. If the newest one is damaged, the one before it."""
    paths = [path for path in (folder.checkpoint_path, folder.checkpoint_before_path) if path.exists()]
    for i, path in enumerate(paths):
        try:
            return read(path)
        except WeightsError as error:
            if i == len(paths) - 1:
                raise
            folder.log(f"warning: {error}; using {paths[i + 1].name} instead")
    return None


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _advice(key: str) -> str:
    if key.startswith("class_head."):
        return "another number of classes: finetune with mode=train, or set data.num_classes"
    if key.startswith("query_embed."):
        return "set model.num_queries to the file's"
    return "choose the model that the file was made with"
