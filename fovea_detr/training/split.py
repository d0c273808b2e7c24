"""One split of the data set as training uses it: this rank's batches, detections, metrics and inference time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fovea_detr.config.batching import Batching
from fovea_detr.config.schema import Config
from fovea_detr.data.batches import epoch_batches, eval_batches
from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.loader import Loader
from fovea_detr.errors import DataError
from fovea_detr.evaluation.coco import DetectionTable, GroundTruth, coco_metrics
from fovea_detr.evaluation.detections import detect, in_category_ids, inference_seconds
from fovea_detr.evaluation.matches import OF_BOXES, OF_MASKS, OF_SEGMENTS, Matches, MatchFile, Segments
from fovea_detr.evaluation.matching import matches_of
from fovea_detr.evaluation.panoptic import panoptic
from fovea_detr.evaluation.quality import PanopticMap, PanopticTruth
from fovea_detr.machine import distributed
from fovea_detr.training.compiled import eager
from fovea_detr.types import Batch, Predictions


@dataclass
class Split:
    """The training or the validation split with its loader. category_ids: by output; None: the outputs themselves."""

    dataset: CocoDataset
    loader: Loader
    config: Config
    category_ids: Mapping[int, int] | None = None

    def epoch_batches(self, epoch: int, batching: Batching) -> list[list[list[int]]]:
        """This rank's micro-batches of each step of an epoch, as indices of images. Raises DataError."""
        config, size = self.config, batching.images
        if config.schedule.total_batch is not None and len(self.dataset) < batching.total:
            raise DataError(
                f"{len(self.dataset)} training images do not fill one batch of schedule.total_batch={batching.total}: "
                f"set schedule.total_batch={len(self.dataset)} or less"
            )
        ratios = self.dataset.aspect_ratios(config.seed, epoch) if config.data.bucketing else None
        own, world, rank = batching.per_process, batching.processes, distributed.rank()
        batches = epoch_batches(len(self.dataset), own, world, rank, config.seed, epoch, ratios)
        return [[batch[start : start + size] for start in range(0, own, size)] for batch in batches]

    @cached_property
    def ground_truth(self) -> GroundTruth:
        """The annotations to evaluate against, read at the first evaluation."""
        return GroundTruth(self.dataset.annotations.ground_truth(), self.config.evaluation.backend)

    def detect(
        self,
        model: nn.Module,
        device: torch.device,
        before_each: Callable[[], None],
        after_each: Callable[[Predictions, Any], None] | None = None,
    ) -> DetectionTable:
        """The detections in this rank's share of the images. before_each, which may raise, after_each: see `detect`."""
        size, world, rank = self.config.evaluation.batch_size, distributed.world_size(), distributed.rank()
        batches = self.loader.read(eval_batches(self.dataset.annotations.image_ids, size, world, rank))
        merge = self._merge if self.panoptic_truth is not None else None
        with eager():
            masks = self.config.model.masks
            table = detect(
                model, batches, device, self.config.precision, before_each, after_each, masks=masks, merge=merge
            )
        return table if self.category_ids is None else in_category_ids(table, self.category_ids)

    @cached_property
    def panoptic_truth(self) -> PanopticTruth | None:
        """The panoptic annotations to evaluate against; None without any, or without masks."""
        split = self.dataset.annotations
        if split.panoptic is None or not self.config.model.masks:
            return None
        return PanopticTruth(split.panoptic, split.image_ids.tolist())

    def metrics(self, table: DetectionTable) -> dict[str, Any]:
        """All metrics of the detections of the whole split. DataError."""
        found = coco_metrics(self.ground_truth, table)
        if table.maps is not None and self.panoptic_truth is not None:
            found |= self.panoptic_truth.metrics(table.maps)
        return found

    def matches(self, table: DetectionTable, metrics: Mapping[str, Any]) -> dict[MatchFile, Matches | Segments]:
        """What a resample of the images needs of these detections; metrics: theirs."""
        found: dict[MatchFile, Matches | Segments] = {OF_BOXES: matches_of(self.ground_truth, table, metrics["AP"])}
        if table.masks is not None:
            found[OF_MASKS] = matches_of(self.ground_truth, table, metrics[OF_MASKS.score], kind="segm")
        if table.maps is not None and self.panoptic_truth is not None:
            found[OF_SEGMENTS] = self.panoptic_truth.by_image(table.maps, metrics[OF_SEGMENTS.score])
        return found

    def _merge(self, batch: Batch, predictions: Predictions) -> list[PanopticMap]:
        assert self.panoptic_truth is not None
        options, things = self.config.panoptic, self.panoptic_truth.things
        ids = self.category_ids or self.dataset.annotations.classes.id_by_output
        is_thing = {output: things[category] for output, category in ids.items() if category in things}
        sizes = (batch.sizes_hw, batch.original_sizes_hw)
        found = panoptic(predictions, *sizes, options.threshold, is_thing, score=options.score, crop=options.crop)
        return [
            PanopticMap.of(image_id, of_image, [{**one, "category_id": ids[one["category_id"]]} for one in segments])
            for image_id, (of_image, segments) in zip(batch.image_ids, found, strict=True)
        ]

    def inference_time(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """The mean seconds per image at batch 1 over the first images by id, by DETR's protocol, and their number."""
        batches = eval_batches(self.dataset.annotations.image_ids, 1, 1, 0)[: self.config.evaluation.timed_images]
        one_by_one = Loader(self.dataset, seed=0, workers=0).read(batches)
        with eager():
            seconds = inference_seconds(model, one_by_one, device, self.config.precision)
        return {"inference_seconds": seconds, "inference_images": len(batches)}
