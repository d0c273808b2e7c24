"""`experiment=tiny` with the plain implementation: the same data, order, flips, initial weights and schedule. The rest
is plain: PIL reads and normalises every image in every epoch, then DETR's step, and pycocotools on lists of dicts.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as F

from benchmarks.plain.criterion import Objects, corners, plain_criterion
from benchmarks.plain.layers import pad
from benchmarks.plain.model import plain_twin
from benchmarks.plain.step import new_log, plain_optimizer, plain_step
from fovea_detr.build import build_model, class_outputs
from fovea_detr.config.schema import Config
from fovea_detr.data.transforms import mixed_seed
from fovea_detr.training.optim import learning_rate_factor, set_learning_rate

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's
Key = tuple[int, int, int]  # index, epoch, seed


class PlainImages(Dataset):
    """A split in COCO's layout, resized to a long side of 128 pixels, with the same random flips as ours.

    reading_seconds: the time of decoding and resizing so far; ours does both once (data.in_memory).
    """

    def __init__(self, root: Path, split: str, flip: float, side: int = 128) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco = COCO(str(root / "annotations" / f"instances_{split}2017.json"))
        self.flip, self.side, self.reading_seconds = flip, side, 0.0
        self.ids = [image["id"] for image in self.coco.dataset["images"]]
        self.paths = [root / f"{split}2017" / self.coco.imgs[i]["file_name"] for i in self.ids]
        self.objects = [self.coco.loadAnns(self.coco.getAnnIds(imgIds=i, iscrowd=False)) for i in self.ids]

    def read(self, path: Path) -> Image.Image:
        begin = time.monotonic()
        with Image.open(path) as image:
            width, height = image.size
            short, long = min(width, height), max(width, height)
            side = max(1, round(self.side * short / long))
            size_hw = (side, min(int(side * long / short), self.side))
            size_hw = size_hw if height <= width else size_hw[::-1]
            resized = image.convert("RGB").resize(size_hw[::-1], Image.Resampling.BILINEAR)
        self.reading_seconds += time.monotonic() - begin
        return resized

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: Key) -> tuple[Tensor, dict[str, Tensor]]:
        index, epoch, seed = key
        image, info = self.read(self.paths[index]), self.coco.imgs[self.ids[index]]
        boxes = torch.as_tensor([o["bbox"] for o in self.objects[index]], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(min=0, max=info["width"])
        boxes[:, 1::2].clamp_(min=0, max=info["height"])
        draw = Generator().manual_seed(mixed_seed("augment", seed, epoch, self.ids[index]))
        if self.flip and float(torch.rand((), generator=draw)) < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([info["width"], 0] * 2)
        boxes = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), dim=1)
        boxes = boxes / torch.tensor([info["width"], info["height"]] * 2, dtype=torch.float32)
        normalised = F.normalize(F.to_tensor(image), MEAN, STD)
        labels = torch.tensor([o["category_id"] for o in self.objects[index]], dtype=torch.int64)
        target = {"labels": labels, "boxes": boxes, "image_id": torch.tensor([self.ids[index]])}
        return normalised, {**target, "orig_size": torch.tensor([info["height"], info["width"]])}


def ordered(num_images: int, size: int, seed: int, epoch: int) -> list[list[int]]:
    """Every full batch of an epoch, in the order in which ours draws them."""
    order = torch.randperm(num_images, generator=Generator().manual_seed(mixed_seed("order", seed, epoch))).tolist()
    return [order[start : start + size] for start in range(0, num_images - size + 1, size)]


def load(images: PlainImages, batches: list[list[int]], epoch: int, seed: int) -> DataLoader:
    keys: Any = [[(index, epoch, seed) for index in batch] for batch in batches]
    return DataLoader(images, batch_sampler=keys, collate_fn=_collate)


def _collate(examples: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[tuple[Tensor, Tensor], Objects]:
    return pad([image for image, _ in examples]), [target for _, target in examples]


class PlainRun:
    """config: of `experiment=tiny`; root: of its generated data."""

    def __init__(self, config: Config, root: Path) -> None:
        self.config = config
        self.train, self.val = PlainImages(root, "train", flip=0.5), PlainImages(root, "val", flip=0.0)
        torch.manual_seed(config.seed)
        self.model = plain_twin(config, build_model(config))
        self.criterion = plain_criterion(config, class_outputs(config))
        self.optimizer, self.log = plain_optimizer(self.model, config.schedule), new_log()

    def train_one_epoch(self, epoch: int) -> None:
        self.model.train()
        schedule = self.config.schedule
        batches = ordered(len(self.train), schedule.batch_size, self.config.seed, epoch)
        for i, (batch, targets) in enumerate(load(self.train, batches, epoch, self.config.seed)):
            factor = learning_rate_factor(schedule, epoch * len(batches) + i, len(batches))
            set_learning_rate(self.optimizer, factor)
            plain_step(self.model, self.criterion, self.optimizer, batch, targets, self.log, clip=schedule.clip)

    @torch.no_grad()
    def evaluate(self) -> float:
        """-> AP of the validation split."""
        self.model.eval()
        size, count = self.config.evaluation.batch_size, len(self.val)
        batches = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
        results = []
        for batch, targets in load(self.val, batches, 0, self.config.seed):
            results.extend(coco_results(self.model(*batch), targets))
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self.val.coco, self.val.coco.loadRes(results), "bbox")  # pyright: ignore[reportArgumentType]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return float(evaluation.stats[0])

    def fit(self) -> dict[str, Any]:
        """-> seconds of training, of evaluation, and of reading images during training, and AP after every epoch."""
        training = evaluation = 0.0
        scores = []
        for epoch in range(self.config.schedule.epochs):
            begin = time.monotonic()
            self.train_one_epoch(epoch)
            middle = time.monotonic()
            scores.append(self.evaluate())
            training, evaluation = training + middle - begin, evaluation + time.monotonic() - middle
        seconds = {"training_seconds": training, "evaluation_seconds": evaluation}
        return {**seconds, "reading_seconds": self.train.reading_seconds, "AP": scores}


def best_of(outputs: dict[str, Any], sizes_hw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The Q best of the Q x C scores of each image -> scores, labels [B, Q], boxes [B, Q, 4] as corners in pixels."""
    logits = outputs["pred_logits"]
    scores, best = logits.sigmoid().view(len(logits), -1).topk(logits.shape[1], dim=1)
    boxes = torch.gather(corners(outputs["pred_boxes"]), 1, (best // logits.shape[2])[..., None].repeat(1, 1, 4))
    return scores, best % logits.shape[2], boxes * sizes_hw.flip(1).repeat(1, 2)[:, None]


def coco_results(outputs: dict[str, Any], targets: Objects) -> Iterator[dict[str, Any]]:
    scores, labels, boxes = best_of(outputs, torch.stack([target["orig_size"] for target in targets]))
    boxes[..., 2:] -= boxes[..., :2]
    for target, of_image in zip(targets, zip(scores, labels, boxes, strict=True), strict=True):
        image_id = target["image_id"].item()
        for score, label, box in zip(*(part.tolist() for part in of_image), strict=True):
            yield {"image_id": image_id, "category_id": label, "bbox": box, "score": score}


def main() -> None:
    """Print the fit's numbers as JSON: `python -m benchmarks.plain.run ROOT SEED`, after the data was generated."""
    import sys
    from dataclasses import replace

    from fovea_detr.cli import one_line_errors
    from fovea_detr.compose import load_config

    with one_line_errors():
        config = load_config(["experiment=tiny", f"seed={sys.argv[2]}", *sys.argv[3:]])
        config = replace(config, data=replace(config.data, num_classes=7))
        torch.set_num_threads(1)
        print(json.dumps(PlainRun(config, Path(sys.argv[1])).fit()))


if __name__ == "__main__":
    main()
