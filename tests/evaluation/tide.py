"""TIDE's error types, step by step as the paper defines them (section 2.2): the slow twin of `matching._errors`."""

from __future__ import annotations

from typing import Any

import numpy as np

from fovea_detr.evaluation.matches import ERRORS

FOUND, BACKGROUND = 0.5, 0.1  # IoU
Boxes = list[dict[str, Any]]  # id, image_id, category_id, bbox, score of detections


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)


def errors(objects: Boxes, found: Boxes, owner: dict[int, int]) -> dict[str, float]:
    """Objects that count, detections that count, best first, and the object that each true positive has found."""
    kinds = {d["id"]: kind_of(d, objects) for d in found if d["id"] not in owner}
    base = mean_ap(objects, [(d, d["id"] in owner, d["category_id"]) for d in found])
    gains = {}
    for error in ERRORS:
        mended = [d for d in found if kinds.get(d["id"], ("", None))[0] == error]
        gains[error] = with_mended(error, mended, kinds, objects, found, owner) - base
    return gains


def kind_of(d: dict[str, Any], objects: Boxes) -> tuple[str, Any]:
    """The type of a false positive, and the object that it is about."""
    here = [o for o in objects if o["image_id"] == d["image_id"]]
    same = [(iou(d["bbox"], o["bbox"]), o) for o in here if o["category_id"] == d["category_id"]]
    other = [(iou(d["bbox"], o["bbox"]), o) for o in here if o["category_id"] != d["category_id"]]
    best_same, best_other = best(same), best(other)
    if BACKGROUND <= best_same[0] < FOUND:
        return "Loc", best_same[1]
    if best_other[0] >= FOUND:
        return "Cls", best_other[1]
    if best_same[0] >= FOUND:
        return "Dupe", best_same[1]
    return ("Bkg", None) if max(best_same[0], best_other[0]) < BACKGROUND else ("Both", None)


def best(pairs: list[tuple[float, Any]]) -> tuple[float, Any]:
    return max(pairs, key=lambda pair: pair[0], default=(0.0, None))


def with_mended(error: str, mended: Boxes, kinds: Any, objects: Boxes, found: Boxes, owner: dict[int, int]) -> float:
    """AP50 without this type of error: mended to a true positive where its object has none yet, else left out."""
    if error == "Miss":
        told = {kind[1]["id"] for kind in kinds.values() if kind[0] in ("Cls", "Loc")}
        kept = [o for o in objects if o["id"] in owner.values() or o["id"] in told]
        return mean_ap(kept, [(d, d["id"] in owner, d["category_id"]) for d in found], objects)
    taken, verdicts = set(owner.values()), []
    ids, firsts = {d["id"] for d in mended}, first_claims(kinds, found)
    for d in found:
        if d["id"] not in ids:
            verdicts.append((d, d["id"] in owner, d["category_id"]))
        elif error in ("Cls", "Loc"):
            target = kinds[d["id"]][1]
            if target["id"] not in taken and firsts[target["id"]] == d["id"]:
                verdicts.append((d, True, target["category_id"]))
    return mean_ap(objects, verdicts)


def first_claims(kinds: Any, found: Boxes) -> dict[int, int]:
    """By object, the best detection that would find it with another class or another box."""
    claims: dict[int, int] = {}
    for d in found:
        if kinds.get(d["id"], ("", None))[0] in ("Cls", "Loc"):
            claims.setdefault(kinds[d["id"]][1]["id"], d["id"])
    return claims


def mean_ap(objects: Boxes, verdicts: list[tuple[Any, bool, int]], all_objects: Boxes | None = None) -> float:
    """AP at 101 recalls, the mean over the categories that have objects."""
    aps = []
    for category in sorted({o["category_id"] for o in all_objects or objects}):
        count = sum(o["category_id"] == category for o in objects)
        hits = [hit for _, hit, own in verdicts if own == category]
        if count == 0:
            aps.append(0.0)
            continue
        true = np.cumsum(hits)
        precision = true / np.arange(1, len(hits) + 1)
        aps.append(
            float(
                np.mean([max(precision[true / count >= recall], default=0.0) for recall in np.linspace(0.0, 1.0, 101)])
            )
        )
    return float(np.mean(aps)) if aps else 0.0
