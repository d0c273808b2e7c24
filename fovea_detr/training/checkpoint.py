"""Checkpoints: load weights with a report of what fitted, save and read a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from fovea_detr.data.categories import ClassMap
from fovea_detr.errors import WeightsError
from fovea_detr.model.detr import DETR
from fovea_detr.model.published import in_our_names, is_of_masks, is_torchvision
from fovea_detr.runs.folder import RunFolder
from fovea_detr.training.files import read, read_state_dict, tensors_of
from fovea_detr.training.trained import model_differences, trained_config

FORMAT = 1
HEAD = ("class_head.weight", "class_head.bias")


@dataclass
class Loaded:
    """The result of `load_weights`, in our naming. skipped: names not loaded, and why; missing: left unchanged.

    notes: what else the log has to tell.
    """

    source: str
    loaded: int
    skipped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """One line for the log."""
        parts = [f"weights: {self.loaded} tensors from {self.source}"]
        if self.skipped:
            parts.append("skipped " + ", ".join(f"{name} ({why})" for name, why in self.skipped.items()))
        if self.missing:
            parts.append(f"left as initialised: {_names(self.missing)}")
        return "; ".join([*parts, *self.notes])


def load_weights(
    model: nn.Module,
    source: Path | str | Mapping[str, Any],
    *,
    other_classes: bool = False,
    backbone_alone: bool = True,
    classes: ClassMap | None = None,
    name: str | None = None,
) -> Loaded:
    """Load a checkpoint (ours, DETR's or SMCA's naming, a torchvision network) or a state dict into a model, in place.

    source: a path, the content of a checkpoint, or a state dict. other_classes: finetuning: a class head of another
    size is skipped and reported, and so are other settings, instead of an error. backbone_alone: a torchvision network,
    which fills only the backbone, is accepted. classes: with other_classes, the outputs of the head to take over.
    name: of the source, for messages. A mask head that the model does not have is left out, with a note; one that the
    file does not have stays as initialised in finetuning, and with model.freeze_detector=true.
    Raises WeightsError, one line, where anything else does not fit: the model is then unchanged.
    """
    name = name or ("a state dict" if isinstance(source, Mapping) else str(source))
    content = dict(source) if isinstance(source, Mapping) else read(source)
    theirs = tensors_of(content, name)
    only_backbone = is_torchvision(theirs)
    if only_backbone and not backbone_alone:
        raise WeightsError(
            f"{name}: a torchvision network fills only the backbone; a whole detector's checkpoint is needed"
        )
    theirs, ours = in_our_names(theirs), model.state_dict()
    report = Loaded(name, loaded=0)
    compare_settings(content, model, report, refuse=not other_classes)
    built = model.config if isinstance(model, DETR) else None
    begins_stage_2 = built is not None and built.model.freeze_detector and built.mode == "train"
    _fit_masks(theirs, ours, report, may_lack=other_classes or only_backbone or begins_stage_2)
    if classes is not None:
        take_classes(theirs, ours, classes, report)
    _take_out_other_shapes(theirs, ours, report, other_classes)
    report.missing = [key for key in ours if key not in theirs and key not in report.skipped]
    _refuse_other_model(theirs, ours, report, only_backbone)
    known = {key: value for key, value in theirs.items() if key in ours}
    model.load_state_dict(known, strict=False)
    report.loaded = len(known)
    return report


def _fit_masks(theirs: dict[str, Tensor], ours: Mapping[str, Tensor], report: Loaded, *, may_lack: bool) -> None:
    """Leave out a mask head that the model does not have. WeightsError: the file has none, and `may_lack` is false."""
    in_file, in_model = (any(is_of_masks(name) for name in state) for state in (theirs, ours))
    if in_file and not in_model:
        report.notes.append("its mask head is left out, for the model has none (model.masks=false)")
        for key in [key for key in theirs if is_of_masks(key)]:
            del theirs[key]
    if in_model and not in_file and not may_lack:
        raise WeightsError(
            f"{report.source}: it has no mask head (bbox_attention, mask_head): train one with mode=train "
            "model.freeze_detector=true, or set model.masks=false"
        )


def _take_out_other_shapes(
    theirs: dict[str, Tensor], ours: Mapping[str, Tensor], report: Loaded, other_classes: bool
) -> None:
    """Move a class head of another size from `theirs` to the report. WeightsError: another tensor of another shape."""
    for key in [key for key in theirs if key in ours and theirs[key].shape != ours[key].shape]:
        why = f"{tuple(theirs[key].shape)} in the file, {tuple(ours[key].shape)} in the model"
        if not (other_classes and key.startswith("class_head.")):
            raise WeightsError(f"{report.source}: {key} is {why}; {_advice(key)}")
        report.skipped[key] = why
        del theirs[key]


def _refuse_other_model(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], report: Loaded, only_backbone: bool
) -> None:
    """Raise WeightsError for tensors that the model does not have, and for tensors of the model that are missing."""
    unknown = [key for key in theirs if key not in ours]
    has_masks = any(is_of_masks(key) for key in theirs)

    def is_needed(key: str) -> bool:
        return key.startswith("backbone.") if only_backbone else has_masks or not is_of_masks(key)

    lacking = [key for key in report.missing if is_needed(key)]
    for keys, what in ((unknown, "the model has no"), (lacking, "the file has no")):
        counted = [key for key in keys if not key.endswith("num_batches_tracked")]
        if counted:
            raise WeightsError(
                f"{report.source}: {what} {_names(counted)}; choose the model that the file was made with"
            )


def compare_settings(content: Mapping[str, Any], model: nn.Module, report: Loaded, *, refuse: bool) -> None:
    """Compare what a checkpoint was trained with, if it says so, with what the model was built from.

    Differences that no tensor's shape shows (smooth, heads, type4 or type5) are an error, or a note in the report.
    """
    built = model.config if isinstance(model, DETR) else None
    trained = None if built is None else trained_config(content, report.source, built)
    changed = [] if built is None or trained is None else model_differences(trained, built)
    if changed and refuse:
        raise WeightsError(
            f"{report.source}: it was trained with other settings than the model is built from ({'; '.join(changed)}): "
            "build the model with those of the file"
        )
    if changed:
        report.notes.append(f"warning: it was trained with other settings ({'; '.join(changed)})")


def take_classes(theirs: dict[str, Tensor], ours: Mapping[str, Tensor], classes: ClassMap, report: Loaded) -> None:
    """Leave in `theirs` a class head of the model's size: their rows of the classes in common, the others initialised.

    Without a class in common the head is skipped. The last output (softmax: no object) is kept with the others.
    """
    pairs = classes.pairs
    for key in [key for key in HEAD if key in theirs]:
        if not pairs:
            report.skipped[key] = "no class in common"
            del theirs[key]
        elif (
            classes.theirs
            or classes.ours
            or theirs[key].shape != ours[key].shape
            or any(i != j for i, j in pairs.items())
        ):
            rows = ours[key].detach().clone()
            mine, others = [*pairs.values(), len(rows) - 1], [*pairs, len(theirs[key]) - 1]
            rows[mine] = theirs[key][others].to(rows)
            theirs[key] = rows
    report.notes.append(classes.describe())


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
    folder.write_checkpoint(lambda file: torch.save({"format": FORMAT, **content}, file))


def save_as(folder: RunFolder, name: str, content: Mapping[str, Any]) -> None:
    """Write another file of weights atomically."""
    folder.write(name, lambda file: torch.save({"format": FORMAT, **content}, file))


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
