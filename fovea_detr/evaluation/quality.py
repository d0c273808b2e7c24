"""Panoptic quality (Kirillov et al., Panoptic Segmentation, CVPR 2019), by hotcoco, from files of COCO's format."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from hotcoco.panoptic import PanopticEval

from fovea_detr.data.panoptic import PanopticFiles, as_png
from fovea_detr.errors import DataError
from fovea_detr.evaluation import matches

Segments = list[dict[str, Any]]
GROUPS = {"All": "", "Things": "_things", "Stuff": "_stuff"}
SCORES = ("pq", "sq", "rq")


class PanopticMap(NamedTuple):
    """The segments that were found in one image, as COCO writes them. png: the map of ids, as a file's content."""

    image_id: int
    png: bytes
    segments_info: Segments

    @classmethod
    def of(cls, image_id: int, ids: Any, segments: Segments) -> PanopticMap:
        """ids [H, W] below 2^24."""
        file = io.BytesIO()
        as_png(np.asarray(ids).astype(np.uint32)).save(file, "PNG")
        return cls(image_id, file.getvalue(), segments)


@dataclass(frozen=True)
class PanopticTruth:
    """The panoptic annotations of these images."""

    files: PanopticFiles
    image_ids: Sequence[int]

    @cached_property
    def content(self) -> dict[str, Any]:
        content, wanted = self.files.content(), set(self.image_ids)
        parts = {"images": "id", "annotations": "image_id"}
        return {
            **content,
            **{part: [one for one in content[part] if one[key] in wanted] for part, key in parts.items()},
        }

    @property
    def names(self) -> dict[int, str]:
        return {one["id"]: str(one.get("name", one["id"])) for one in self.content["categories"]}

    @property
    def things(self) -> dict[int, bool]:
        return {one["id"]: bool(one["isthing"]) for one in self.content["categories"]}

    def file_name(self, image_id: int) -> str:
        return self._file_names[image_id]

    @cached_property
    def _file_names(self) -> dict[int, str]:
        return {one["image_id"]: one["file_name"] for one in self.content["annotations"]}

    def annotations(self, maps: Sequence[PanopticMap]) -> dict[str, Any]:
        """What was found, in COCO's panoptic format."""
        found = [
            {"image_id": one.image_id, "file_name": self.file_name(one.image_id), "segments_info": one.segments_info}
            for one in maps
        ]
        return {**self.content, "annotations": found}

    def metrics(self, maps: Sequence[PanopticMap]) -> dict[str, Any]:
        """PQ, SQ, RQ, PQ_things, ... and PQ_by_category; -1 where there is no such category. DataError."""
        with self._written(maps) as folder:
            found = quality_of_files(self.content, self.files.png_folder, self.annotations(maps), folder)
        return quality_metrics(found, self.names)

    def by_image(self, maps: Sequence[PanopticMap], pq: float, source: str = "evaluation") -> matches.Segments:
        """What each image adds to the quality, by an evaluation of it alone. pq: the evaluator's, of all. DataError."""
        names, things, image_ids = self.names, self.things, np.array(sorted(self.image_ids), np.int64)
        with self._written(maps) as folder:
            rows = np.array(list(self._parts(maps, folder, image_ids.tolist())), np.float64).reshape(-1, 6)
        images, labels, _, tp, fp, fn = rows.T.astype(np.int64)
        return matches.Segments(
            image_ids=image_ids,
            category_ids=np.array(sorted(names), np.int64),
            category_names=np.array([names[category] for category in sorted(names)], str),
            things=np.array([things[category] for category in sorted(names)], bool),
            **{"images": images, "labels": labels, "ious": rows[:, 2], "tp": tp, "fp": fp, "fn": fn},
            pq=pq,
            source=source,
        )

    def _parts(self, maps: Sequence[PanopticMap], folder: Path, image_ids: Sequence[int]) -> Iterator[list[float]]:
        """Index of the image, index of the category, sum of IoU, tp, fp, fn."""
        places = {category: k for k, category in enumerate(sorted(self.names))}
        sides = [self.content, self.annotations(maps)]
        by_image = [{one["image_id"]: one for one in side["annotations"]} for side in sides]
        images = {one["id"]: one for one in self.content["images"]}
        for i, image_id in enumerate(image_ids):
            truth, found = (
                {**self.content, "images": [images[image_id]], "annotations": [side[image_id]]} for side in by_image
            )
            quality = quality_of_files(truth, self.files.png_folder, found, folder)["by_category"]
            for category, one in sorted((int(key), one) for key, one in quality.items()):
                counts = [one[key] for key in ("tp", "fp", "fn")]
                if any(counts):
                    yield [i, places[category], one["iou"], *counts]

    @contextmanager
    def _written(self, maps: Sequence[PanopticMap]) -> Iterator[Path]:
        """A folder with the PNGs of the maps."""
        with TemporaryDirectory() as temporary:
            for one in maps:
                (Path(temporary) / self.file_name(one.image_id)).write_bytes(one.png)
            yield Path(temporary)


def panoptic_quality(
    truth: Sequence[tuple[Any, Segments]], found: Sequence[tuple[Any, Segments]], categories: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Of each image the map of ids [H, W] and its segments_info, of truth and prediction -> panoptic quality.

    In the truth, id 0 is void; a predicted 0 is a segment if segments_info lists it, else void. categories: COCO's,
    with `id` and `isthing`. -> "All", "Things", "Stuff": pq, sq, rq (fractions) and n, the number of categories that
    they are averaged over; "by_category": by id pq, sq, rq (-1 without any segment), iou (their sum), tp, fp, fn.
    DataError: segments_info and map do not fit, or truth and found are not of the same images.
    """
    if not 0 < len(truth) == len(found):
        raise DataError(f"panoptic quality: the truth is of {len(truth)} images, what was found of {len(found)}")
    with TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("truth", "found")]
        sides = [_write_maps(folder, images) for folder, images in zip(folders, (truth, found), strict=True)]
        shared = {"categories": [{"name": str(one["id"]), **one} for one in categories]}
        shared["images"] = [
            {"id": i, "file_name": f"{i}.png", "height": len(ids), "width": len(ids[0])}
            for i, (ids, _) in enumerate(truth, start=1)
        ]
        contents = [{**shared, "annotations": annotations} for annotations in sides]
        return quality_of_files(contents[0], folders[0], contents[1], folders[1])


def _write_maps(folder: Path, images: Sequence[tuple[Any, Segments]]) -> list[dict[str, Any]]:
    """Write the maps as PNGs into a new folder -> their annotations."""
    folder.mkdir()
    maps = [PanopticMap.of(i, *one) for i, one in enumerate(images, start=1)]
    for one in maps:
        (folder / f"{one.image_id}.png").write_bytes(one.png)
    return [
        {"image_id": one.image_id, "file_name": f"{one.image_id}.png", "segments_info": one.segments_info}
        for one in maps
    ]


def quality_of_files(
    truth: dict[str, Any], truth_folder: Path, found: dict[str, Any], found_folder: Path
) -> dict[str, Any]:
    """COCO's panoptic dicts and the folders of their PNGs -> as `panoptic_quality`. DataError."""
    try:
        evaluation = PanopticEval(truth, found, gt_folder=truth_folder, pred_folder=found_folder)
        evaluation.evaluate()
    except ValueError as error:
        raise DataError(f"panoptic quality: {' '.join(str(error).split())}") from error
    results = evaluation.results()
    wrong = [category for category, one in results["per_class"].items() if one["iou"] > one["tp"] * (1 + 1e-9)]
    if wrong:
        raise DataError(f"panoptic quality: the truth states areas below those of its pixels in category {wrong[0]}")
    groups = {group: {key: results[group][key] for key in (*SCORES, "n")} for group in GROUPS}
    return {**groups, "by_category": dict(results["per_class"])}


def quality_metrics(quality: dict[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    """PQ, SQ, RQ, PQ_things, ... as a run stores them, and PQ_by_category; -1 where there is no such category."""
    metrics: dict[str, Any] = {
        f"{score.upper()}{suffix}": quality[group][score] if quality[group]["n"] else -1.0
        for group, suffix in GROUPS.items()
        for score in SCORES
    }
    return metrics | {"PQ_by_category": {names[int(i)]: one["pq"] for i, one in quality["by_category"].items()}}
