"""DETR's own way to load COCO: every rank parses both splits with pycocotools, every worker is a fork of its rank.

torchrun --nproc_per_node=4 -m benchmarks.plain.loader ROOT WORKERS      waits with its first batches
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.datasets import CocoDetection


class Boxes(CocoDetection):
    """An image and its boxes, as DETR's ConvertCocoPolysToMask without masks."""

    def __getitem__(self, index: int) -> Any:
        image, objects = super().__getitem__(index)
        return image, [(one["bbox"], one["category_id"]) for one in objects if not one.get("iscrowd")]


def main(root: Path, workers: int) -> None:
    dist.init_process_group("gloo")
    loaders = []
    for split in ("train", "val"):
        data = Boxes(str(root / f"{split}2017"), str(root / "annotations" / f"instances_{split}2017.json"))
        sampler = DistributedSampler(data, shuffle=split == "train")
        loaders.append(DataLoader(data, 4, sampler=sampler, num_workers=workers, collate_fn=list))
    batches = iter(loaders[0])
    for _ in range(10 * workers):
        next(batches)
    dist.barrier()
    if dist.get_rank() == 0:
        print("all ranks have a batch", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
