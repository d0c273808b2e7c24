"""The weights that a run starts from, or evaluates: weights=PATH, or the pretrained backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fovea_detr.config.schema import Config
from fovea_detr.data.categories import Classes, ClassMap, match, some
from fovea_detr.errors import WeightsError
from fovea_detr.machine import distributed
from fovea_detr.model.detr import DETR
from fovea_detr.training import checkpoint
from fovea_detr.training.console import Console
from fovea_detr.training.files import read
from fovea_detr.training.trained import class_names, num_classes


@dataclass(frozen=True)
class Weights:
    """What weights=PATH holds. number: its classes, None without a class head. classes: which of the data's they are,
    by category id in evaluation, by output in training."""

    path: str
    content: Mapping[str, Any]
    evaluates: bool
    number: int | None
    classes: ClassMap | None

    @classmethod
    def read(cls, config: Config, classes: Classes) -> Weights:
        """Raises WeightsError, also if an evaluation would have no class in common with the data."""
        path, evaluates = config.weights, config.mode == "eval"
        assert path is not None
        content = distributed.first_on_node(lambda: read(path))
        number = num_classes(content, path)
        if number is None:
            return cls(path, content, evaluates, None, None)
        mapped = match(class_names(content), number, classes.names if evaluates else classes.by_output)
        if evaluates and not mapped.pairs:
            raise WeightsError(
                f"{path}: none of the classes of its class_head ({some(mapped.theirs)}) is in the data "
                f"({some(mapped.ours)}): evaluate on the data that it was trained for, or finetune with mode=train"
            )
        return cls(path, content, evaluates, number, mapped)

    def load(self, model: nn.Module, console: Console) -> None:
        """To evaluate, or as a frozen detector, everything must fit, and in the same order: WeightsError.

        To finetune, classes of the same names keep their outputs of the head.
        """
        frozen = not self.evaluates and isinstance(model, DETR) and model.detector_is_frozen
        if frozen:
            self._refuse_other_classes()
        training = not self.evaluates and not frozen
        by_name = self.classes is not None and self.classes.by_name
        loaded = checkpoint.load_weights(
            model,
            self.content,
            other_classes=training,
            backbone_alone=training,
            classes=self.classes if training and by_name else None,
            name=self.path,
        )
        console.log(loaded.describe())
        if self.evaluates and self.classes is not None:
            console.log(self.classes.describe())

    def _refuse_other_classes(self) -> None:
        """WeightsError if the outputs of the class head, which is not trained, are not the classes of the data."""
        found = self.classes
        if found is not None and (found.ours or any(theirs != ours for theirs, ours in found.pairs.items())):
            lacking = f" ({some(found.ours)} of the data not in it)" if found.ours else ""
            raise WeightsError(
                f"{self.path}: with model.freeze_detector=true its class head is not trained, and its outputs are not "
                f"the classes of the data{lacking}: finetune a detector on these data first, without masks"
            )


def load_backbone(config: Config, model: nn.Module, console: Console) -> None:
    """Load the pretrained backbone, if any."""
    name, source = config.model.backbone, config.model.backbone_weights
    if source != "none":
        state = distributed.first_on_node(lambda: checkpoint.pretrained_state(name, source))
        loaded = checkpoint.load_weights(model, state)
        console.log(f"backbone: {loaded.loaded} tensors from {source}")
