"""Instance masks and the panoptic merge against DETR (golden/masks/); panoptic quality against a loop."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import fovea_detr
from fovea_detr.errors import DataError, UserError
from fovea_detr.evaluation import masks as instance_masks
from fovea_detr.evaluation import panoptic_quality
from fovea_detr.evaluation.masks import encoded_masks
from fovea_detr.types import Predictions
from tests.evaluation.golden_masks import FOLDER, from_json, predictions, stored

coco_mask: Any = pycocotools.mask  # its type hints know no lists


def tags(kind: str) -> list[str]:
    return [path.stem.removeprefix(f"{kind}_") for path in sorted(FOLDER.glob(f"{kind}_*.npz"))]


# ---- instance masks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 1 << 24])
@pytest.mark.parametrize("tag", tags("post_segm"))
def test_instance_masks_as_published(tag: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of masks at once; the published order is that of the queries."""
    monkeypatch.setattr(instance_masks, "AT_ONCE", at_once)
    file = stored(f"post_segm_{tag}")
    sizes = torch.tensor(file["originals"]), torch.tensor(file["sizes"])
    found = fovea_detr.postprocess(predictions(tag, file, 91), sizes[0], masks=True, processed_hw=sizes[1])
    for i, one in enumerate(found):
        order, shape = one.queries.argsort(), tuple(file[f"result{i}_masks_shape"])
        bits = np.unpackbits(file[f"result{i}_masks_bits"], count=int(np.prod(shape))).reshape(shape).astype(bool)
        assert one.masks is not None
        assert np.array_equal(one.masks[order].numpy(), bits)
        assert np.array_equal(one.labels[order].numpy(), file[f"result{i}_labels"])
        assert np.allclose(one.scores[order].numpy(), file[f"result{i}_scores"], rtol=0, atol=1e-6)
        assert np.allclose(one.boxes_xyxy[order].numpy(), file[f"result{i}_boxes"], rtol=0, atol=1e-4)


def sigmoid_predictions() -> Predictions:
    """Two images of five queries and three outputs; the best scores repeat queries."""
    draw = torch.Generator().manual_seed(3)
    logits, boxes = torch.randn(1, 2, 5, 3, generator=draw), torch.rand(1, 2, 5, 4, generator=draw)
    logits[:, :, 1] += 9
    return Predictions(logits, boxes, "sigmoid", torch.randn(2, 5, 8, 12, generator=draw))


def test_a_query_that_is_found_as_several_classes_keeps_its_mask() -> None:
    out, processed, sizes = (
        sigmoid_predictions(),
        torch.tensor([[32, 40], [30, 48]]),
        torch.tensor([[64, 80], [61, 99]]),
    )
    assert out.masks is not None
    for i, one in enumerate(fovea_detr.postprocess(out, sizes, masks=True, processed_hw=processed)):
        assert one.queries.tolist().count(1) == 3
        assert one.masks is not None
        for query, mask in zip(one.queries.tolist(), one.masks, strict=True):
            assert torch.equal(mask, one_mask(out.masks[i, query], processed, i, sizes[i].tolist()))


def one_mask(logits: Tensor, processed: Tensor, image: int, size_hw: list[int]) -> Tensor:
    """By the words of the specification: the batch's largest size, the image's own, then the final one."""
    height, width = processed[image].tolist()
    large = functional.interpolate(logits[None, None], processed.amax(0).tolist(), mode="bilinear", align_corners=False)
    own = (large.sigmoid() > 0.5)[..., :height, :width].float()
    return functional.interpolate(own, size_hw, mode="nearest")[0, 0] > 0.5


def test_encoded_masks_are_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_masks, "AT_ONCE", 32 * 48 * 2)  # two at once
    out, sizes = sigmoid_predictions(), [(64, 80), (61, 99)]
    found = fovea_detr.postprocess(
        out, torch.tensor(sizes), masks=True, processed_hw=torch.tensor([[32, 40], [30, 48]])
    )
    rles = encoded_masks(out, [one.queries for one in found], [(32, 40), (30, 48)], sizes)
    assert len(rles) == 10
    for rle, mask in zip(rles, (mask for one in found for mask in one.masks), strict=True):  # type: ignore[union-attr]
        assert np.array_equal(coco_mask.decode(rle), mask.numpy())


def test_no_query_has_no_mask() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    (masks,) = instance_masks.whole_masks(
        Predictions(torch.zeros(1, 1, 3, 4), torch.rand(1, 1, 3, 4), masks=torch.zeros(1, 3, 2, 3)),
        [none],
        [(8, 12)],
        [(20, 30)],
    )
    assert masks.shape == (0, 20, 30)


def test_masks_of_a_model_without_them_are_one_line() -> None:
    out = Predictions(torch.zeros(1, 1, 3, 4), torch.rand(1, 1, 3, 4), "softmax")
    for asked in (
        lambda: fovea_detr.panoptic(out, [(8, 8)], [(8, 8)]),
        lambda: fovea_detr.postprocess(out, torch.tensor([[8, 8]]), masks=True, processed_hw=torch.tensor([[8, 8]])),
    ):
        with pytest.raises(UserError, match="a model without masks"):
            asked()


def test_masks_need_the_processed_sizes() -> None:
    with pytest.raises(UserError, match="processed_hw"):
        fovea_detr.postprocess(sigmoid_predictions(), torch.ones(2, 2), masks=True)


# ---- the panoptic merge ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", tags("post_panoptic"))
def test_panoptic_merge_as_published(tag: str) -> None:
    file = stored(f"post_panoptic_{tag}")
    found = fovea_detr.panoptic(predictions(tag, file, 250), file["sizes"], file["originals"], float(file["threshold"]))
    for i, (ids, segments) in enumerate(found):
        assert np.array_equal(ids.numpy(), file[f"result{i}_ids"])
        assert segments == from_json(file, f"result{i}_segments")


def squares(*logits_of_labels: tuple[int, float]) -> Predictions:
    """A query for each (label, logit of its mask inside its own quarter of 8 x 8 cells), surely of that label."""
    count = len(logits_of_labels)
    logits, masks = torch.zeros(1, 1, count, 9), torch.full((1, count, 8, 8), -9.0)
    for query, (label, value) in enumerate(logits_of_labels):
        logits[0, 0, query, label] = 30
        masks[0, query, 4 * (query // 2) :, 4 * (query % 2) :] = value
    return Predictions(logits, torch.zeros(1, 1, count, 4), "softmax", masks)


def test_outputs_that_a_mapping_does_not_have_are_passed_over() -> None:
    out = squares((1, 3.0), (2, 4.0), (8, 5.0))  # 8: no object
    ((_, everything),) = fovea_detr.panoptic(out, [[32, 32]], [[32, 32]], is_thing=lambda label: label < 2)
    ((_, known),) = fovea_detr.panoptic(out, [[32, 32]], [[32, 32]], is_thing={2: False})
    assert [(one["category_id"], one["isthing"]) for one in everything] == [(1, True), (2, False)]
    assert [(one["id"], one["category_id"], one["isthing"], one["area"]) for one in known] == [(0, 2, False, 1024)]


def test_sigmoid_scores_need_a_threshold_of_their_own() -> None:
    out = squares((1, 3.0), (2, 4.0))
    with pytest.raises(UserError, match="no object"):
        fovea_detr.panoptic(replace(out, activation="sigmoid"), [[32, 32]], [[32, 32]])
    with pytest.raises(UserError, match="threshold"):
        fovea_detr.panoptic(replace(out, activation="sigmoid"), [[32, 32]], [[32, 32]], score="sigmoid")
    with pytest.raises(UserError, match="softmax"):
        fovea_detr.panoptic(out, [[32, 32]], [[32, 32]], 0.5, score="sigmoid")
    low = replace(out, activation="sigmoid", logits=out.logits - 29)  # a score of 0.73
    for threshold, number in ((0.7, 2), (0.8, 0)):
        ((_, found),) = fovea_detr.panoptic(low, [[32, 32]], [[32, 32]], threshold, score="sigmoid")
        assert len(found) == number


def test_cropping_first_equals_a_batch_of_one() -> None:
    """Masks at a quarter of sizes that are multiples of 4: resizing and cutting then commute, but at the cut's edge."""
    draw = torch.Generator().manual_seed(0)
    wide = functional.interpolate(torch.randn(1, 3, 4, 4, generator=draw), (8, 16), mode="bilinear") * 4
    padded = squares((1, 0.0), (2, 0.0), (3, 0.0))
    padded.masks = wide  # type: ignore[assignment]
    alone = replace(padded, masks=wide[..., :8])
    (one,) = fovea_detr.panoptic(alone, [[32, 32]], [[32, 32]])
    two = twice(padded, wide)
    cropped, stretched = (
        fovea_detr.panoptic(two, [[32, 32], [32, 64]], [[32, 32], [32, 64]], crop=crop)[0] for crop in (True, False)
    )
    assert torch.equal(cropped[0][:, :30], one[0][:, :30])
    assert not torch.equal(stretched[0][:, :30], one[0][:, :30])


def twice(out: Predictions, masks: Tensor) -> Predictions:
    logits, boxes = (part.repeat(1, 2, 1, 1) for part in (out.logits, out.boxes_cxcywh))
    return Predictions(logits, boxes, "softmax", masks.repeat(2, 1, 1, 1))  # type: ignore[arg-type]


# ---- panoptic quality ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", tags("pq"))
def test_panoptic_quality_as_panopticapi(tag: str) -> None:
    file = stored(f"pq_{tag}")
    truth, found = (list(maps(file, side)) for side in ("gt", "pred"))
    quality = panoptic_quality(truth, found, from_json(file, "categories"))
    for group, scores in from_json(file, "result").items():
        assert {key: quality[group][key] for key in scores} == pytest.approx(scores, rel=0, abs=1e-12)
    for category, counts in from_json(file, "per_category").items():
        one = quality["by_category"][int(category)]
        assert {key: one[key] for key in counts} == pytest.approx(counts, rel=0, abs=1e-12)
        assert one["iou"] == pytest.approx(by_loop(truth, found, int(category)), rel=0, abs=1e-12)


def maps(file: dict[str, Any], side: str) -> Iterator[tuple[np.ndarray, list[dict[str, Any]]]]:
    for i in range(int(file["n"])):
        yield file[f"{side}{i}"], from_json(file, f"{side}{i}_segments")


def by_loop(truth: list[Any], found: list[Any], category: int) -> float:
    """The sum of the IoUs above 0.5, of pairs of one category; crowds are no truth, and void does not count."""
    total = 0.0
    for (true_ids, true_segments), (ids, segments) in zip(truth, found, strict=True):
        for true in true_segments:
            for one in segments:
                if true["category_id"] == one["category_id"] == category and not true["iscrowd"]:
                    mine, theirs = ids == one["id"], true_ids == true["id"]
                    inter = (mine & theirs).sum()
                    iou = inter / (mine.sum() + true["area"] - inter - (mine & (true_ids == 0)).sum())
                    total += iou if iou > 0.5 else 0
    return total


def test_areas_of_the_truth_below_those_of_its_pixels_are_an_error() -> None:
    """Without it, PQ would be 2."""
    ids = np.ones((2, 3), np.uint8)
    truth = (ids, [{"id": 1, "category_id": 1, "area": 3}])
    with pytest.raises(DataError, match="areas below those of its pixels in category 1"):
        panoptic_quality([truth], [(ids, [{"id": 1, "category_id": 1}])], [{"id": 1, "isthing": 1}])


def test_segments_that_the_map_does_not_hold_are_an_error() -> None:
    ids, one = np.ones((4, 4), np.uint8), {"id": 1, "category_id": 1, "iscrowd": 0, "area": 16}
    with pytest.raises(DataError, match="panoptic quality"):
        panoptic_quality([(ids, [one])], [(ids, [one, {"id": 7, "category_id": 1}])], [{"id": 1, "isthing": 1}])


@pytest.mark.parametrize("counts", [(0, 0), (1, 2), (2, 1)])
def test_truth_and_prediction_of_other_images_are_an_error(counts: tuple[int, int]) -> None:
    image = (np.ones((2, 2), np.uint8), [{"id": 1, "category_id": 1, "area": 4}])
    with pytest.raises(DataError, match=f"the truth is of {counts[0]} images, what was found of {counts[1]}"):
        panoptic_quality([image] * counts[0], [image] * counts[1], [{"id": 1, "isthing": 1}])


def test_the_name_of_the_api_needs_no_other_import() -> None:
    line = "import fovea_detr; print(fovea_detr.evaluation.panoptic_quality.__name__)"
    done = subprocess.run([sys.executable, "-c", line], check=True, capture_output=True, text=True)
    assert done.stdout == "panoptic_quality\n"


def test_a_perfect_map_whose_segment_has_the_id_0() -> None:
    ids, one = np.ones((4, 6), np.uint8), {"id": 1, "category_id": 5, "iscrowd": 0, "area": 24}
    quality = panoptic_quality([(ids, [one])], [(ids - 1, [{"id": 0, "category_id": 5}])], [{"id": 5, "isthing": 0}])
    assert (quality["All"]["pq"], quality["Stuff"]["n"], quality["Things"]["n"]) == (1.0, 1, 0)
