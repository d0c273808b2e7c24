"""What was found in the validation split as files of the run folder, in COCO's formats, which other tools read."""

from __future__ import annotations

import json

from fovea_detr.evaluation.coco import DetectionTable
from fovea_detr.evaluation.matches import OF_MASKS, OF_SEGMENTS
from fovea_detr.evaluation.quality import PanopticTruth
from fovea_detr.runs.folder import RunFolder

(MASKS,) = OF_MASKS.predictions
PANOPTIC_JSON, PANOPTIC = OF_SEGMENTS.predictions  # and the folder of its PNGs


def write_found(folder: RunFolder, table: DetectionTable, truth: PanopticTruth | None) -> None:
    """Write the panoptic maps and the masks, where there are any, then predictions.json, which marks it as done."""
    if table.maps is not None and truth is not None:
        for one in table.maps:
            folder.write_inside(PANOPTIC, truth.file_name(one.image_id), lambda file, one=one: file.write(one.png))
        content = truth.annotations(table.maps)
        folder.write(PANOPTIC_JSON, lambda file: file.write(json.dumps(content).encode()))
    if table.masks is not None:
        lines = list(table.mask_results())
        folder.write(MASKS, lambda file: file.write(json.dumps(lines).encode()))
    folder.write_predictions(table.results())
