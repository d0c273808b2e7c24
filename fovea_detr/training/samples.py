"""Sample predictions: the same few images of the validation split in every run, drawn after its last evaluation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image

from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.samples import Sample, resize
from fovea_detr.evaluation.coco import DetectionTable
from fovea_detr.evaluation.drawing import Mark, draw_boxes
from fovea_detr.runs.folder import RunFolder

NUMBER = 4
THRESHOLD = 0.3  # the lowest score that is drawn
LONG_SIDE = 800  # pixels; larger images are drawn smaller


def write_samples(folder: RunFolder, dataset: CocoDataset, table: DetectionTable, names: Mapping[int, str]) -> None:
    """Write samples/IMAGE_ID.jpg. table: the detections of the split. names: by category id."""
    for index in fixed_images(dataset.annotations.image_ids):
        image_id = int(dataset.annotations.image_ids[index])
        picture = drawn(dataset.sample(index), table.of_image(image_id), names)
        folder.write_inside(
            "samples", f"{image_id}.jpg", lambda file, picture=picture: picture.save(file, "JPEG", quality=85)
        )


def fixed_images(image_ids: np.ndarray) -> list[int]:
    """The indices of NUMBER images that are evenly spaced in the order of the ids; all, where there are fewer."""
    order, number = image_ids.argsort(kind="stable"), min(NUMBER, len(image_ids))
    return [int(order[place * len(order) // number]) for place in range(number)]


def drawn(sample: Sample, rows: torch.Tensor, names: Mapping[int, str]) -> Image.Image:
    """sample: an image as on disk. rows: [N, 6], its detections, as in a DetectionTable."""
    found = rows[(rows[:, 4] >= THRESHOLD) & torch.isin(rows[:, 5], torch.tensor(list(names), dtype=rows.dtype))]
    boxes_xyxy = torch.cat((found[:, :2], found[:, :2] + found[:, 2:4]), dim=1).float()
    scale = min(1.0, LONG_SIDE / max(sample.size_hw))
    height, width = (max(1, round(scale * side)) for side in sample.size_hw)
    small = resize(Sample(sample.image, boxes_xyxy, found[:, 5].long()), (height, width))
    rest = zip(small.boxes_xyxy.tolist(), small.labels.tolist(), found[:, 4].tolist(), strict=True)
    return draw_boxes(small.image, [Mark(box, f"{names[i]} {score:.2f}", i) for box, i, score in rest])
