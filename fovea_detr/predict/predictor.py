"""A trained model applied to pictures, in Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fovea_detr.data.loader import collate_images
from fovea_detr.data.samples import Sample
from fovea_detr.data.transforms import eval_transform
from fovea_detr.errors import UserError
from fovea_detr.evaluation.detections import postprocess
from fovea_detr.evaluation.masks import sizes_of, whole_masks
from fovea_detr.machine.device import autocast, denormals_flushed
from fovea_detr.predict.loading import Trained, open_trained
from fovea_detr.predict.pictures import as_pixels, pictures_of
from fovea_detr.types import Batch, Detections, Predictions


@dataclass(frozen=True)
class Found:
    """What was found in one picture, best first. N detections.

    scores: [N] 0..1. labels: [N] int64 outputs of the class head. names: N. boxes_xyxy: [N, 4] pixels of the picture.
    queries: [N] int64, the query of each. size_hw: of the picture, upright. masks: [N, h, w] bool; None: it has none.
    """

    scores: Tensor
    labels: Tensor
    names: list[str]
    boxes_xyxy: Tensor
    queries: Tensor
    size_hw: tuple[int, int]
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)


class Predictor:
    """Finds objects in pictures with a trained model, at the size at which its run was evaluated.

    device: "auto" (a GPU if there is one), "cpu", "cuda".
    """

    def __init__(self, trained: Trained, device: str = "auto") -> None:
        has_gpu = torch.cuda.is_available()
        if device == "cuda" and not has_gpu:
            raise UserError("device=cuda: torch sees no GPU here; use device=cpu")
        self.device = torch.device("cuda" if has_gpu and device != "cpu" else "cpu")
        self.trained = trained
        self.model = trained.model.to(self.device).eval()
        data = trained.config.data
        self.transform = eval_transform(
            data.recipe, short_side=data.short_side, max_side=data.max_side, long_side=data.long_side
        )

    def predict(self, pictures: Any, threshold: float = 0.5, batch_size: int = 1) -> list[Found]:
        """pictures: one, or a sequence of paths, PIL images, arrays [h, w, 3] or tensors [3, h, w], uint8 RGB.

        threshold: the lowest score, 0..1. batch_size: pictures of one forward pass; padding changes the result, so
        more than 1 costs accuracy. Returns one `Found` for each picture. Raises DataError, one line, for anything else.
        """
        found: list[Found] = []
        for batch in self._batches(pictures_of(pictures), batch_size):
            out = self._run(batch)
            detections = zip(postprocess(out, batch.original_sizes_hw), _sizes(batch), strict=True)
            found += self._with_masks(out, batch, [self._found(*one, threshold) for one in detections])
        return found

    def batch(self, pictures: Sequence[Any]) -> Batch:
        """Pictures as one input of the model, resized as for the run's evaluation."""
        originals = [as_pixels(picture) for picture in pictures]
        nothing = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        resized = [self.transform.prepare(Sample(image, *nothing)).image for image in originals]
        return collate_images(resized, [(image.shape[1], image.shape[2]) for image in originals])

    @torch.no_grad()
    def detect(self, batch: Batch) -> list[Detections]:
        """All detections of each picture, whatever their score; without masks."""
        return postprocess(self._run(batch), batch.original_sizes_hw)

    @torch.no_grad()
    def _run(self, batch: Batch) -> Predictions:
        with denormals_flushed(self.device), autocast(self.device, self.trained.config.precision):
            return self.model(batch.to(self.device))

    @torch.no_grad()
    def _with_masks(self, out: Predictions, batch: Batch, found: list[Found]) -> list[Found]:
        """With the masks of these detections alone: those of all queries would fill gigabytes on a large picture."""
        if not self.trained.config.model.masks:
            return found
        masks = whole_masks(out, [one.queries for one in found], sizes_of(batch.sizes_hw), _sizes(batch))
        return [replace(one, masks=mask) for one, mask in zip(found, masks, strict=True)]

    def name(self, label: int) -> str:
        return self.trained.names.get(label, f"class {label}")

    def _batches(self, pictures: Iterator[Any], batch_size: int) -> Iterator[Batch]:
        waiting: list[Any] = []
        for picture in pictures:
            waiting.append(picture)
            if len(waiting) == batch_size:
                yield self.batch(waiting)
                waiting = []
        if waiting:
            yield self.batch(waiting)

    def _found(self, one: Detections, size_hw: tuple[int, int], threshold: float) -> Found:
        """Those above the threshold whose output is a class: a sigmoid head has outputs without one."""
        labels = one.labels.cpu()
        known = torch.tensor([not self.trained.names or label in self.trained.names for label in labels.tolist()])
        kept = (one.scores.cpu() >= threshold) & known
        labels = labels[kept]
        names = [self.name(label) for label in labels.tolist()]
        scores, boxes_xyxy, queries = (part.cpu()[kept] for part in (one.scores, one.boxes_xyxy, one.queries))
        return Found(scores, labels, names, boxes_xyxy, queries, size_hw)


def _sizes(batch: Batch) -> list[tuple[int, int]]:
    return [(height, width) for height, width in batch.original_sizes_hw.tolist()]


def load_run(source: Path | str, overrides: Sequence[str] = (), *, device: str = "auto") -> Predictor:
    """A run folder or a checkpoint -> a Predictor: `load_run("runs/own/base").predict("photo.jpg")`.

    overrides: as on the command line, for what a published checkpoint does not say (`["model=detr_r50"]`).
    Raises UserError, one line.
    """
    return Predictor(open_trained(source, overrides), device)
