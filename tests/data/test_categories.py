"""Classes of a data set, and which of a checkpoint's they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fovea_detr import build
from fovea_detr.compose import load_config
from fovea_detr.data.categories import Classes, coco_names, match, merge_names
from fovea_detr.data.readers import read_coco
from fovea_detr.errors import DataError
from tests.data.builders import edit, write_coco


def test_coco_stays_as_published() -> None:
    classes = Classes.of(coco_names())
    assert (len(classes.names), classes.number, classes.is_compact) == (80, 91, False)
    assert classes.by_output == classes.names
    ids = np.array([1, 90, 13])
    assert np.array_equal(classes.outputs(ids), ids)


@pytest.mark.parametrize(
    ("ids", "number", "is_compact"),
    [
        ([1], 2, False),
        ([90], 91, False),
        ([91], 1, True),
        ([-1, 0, 5], 3, True),
        ([1, 20231115], 2, True),
        (range(1, 21, 2), 20, False),
        ([*range(1, 20), 198], 199, False),  # 200 outputs for 20 categories
        ([*range(1, 20), 199], 20, True),
    ],
)
def test_sparse_ids_are_numbered_anew(ids: list[int], number: int, is_compact: bool) -> None:
    classes = Classes.of({i: f"c{i}" for i in ids})
    assert (classes.number, classes.is_compact) == (number, is_compact)
    outputs = classes.outputs(np.array(sorted(ids)))
    assert outputs.max() == number - 1
    assert classes.category_ids(outputs).tolist() == sorted(ids)
    assert [classes.by_output[o] for o in outputs.tolist()] == [f"c{i}" for i in sorted(ids)]
    assert [classes.id_by_output[o] for o in outputs.tolist()] == sorted(ids)


@pytest.mark.parametrize(("wanted", "is_compact"), [(2, True), (500, True), (1001, False), (2000, False)])
def test_a_set_number_decides_whether_ids_fit(wanted: int, is_compact: bool) -> None:
    classes = Classes.of({3: "a", 1000: "b"}, wanted)
    assert (classes.number, classes.is_compact) == (wanted, is_compact)
    assert classes.has_more_than_needed == (wanted not in (2, 1001))


def test_too_small_a_number_is_refused_with_both() -> None:
    with pytest.raises(DataError, match=r"data.num_classes=4, but .* need 6"):
        Classes.of({1: "a", 5: "b"}, 4)


@pytest.mark.parametrize(
    ("train", "val", "words"),
    [
        ({1: "a", 2: "b"}, {1: "b", 2: "a"}, "id 1 is a in train and b in val, id 2 is b in train and a in val"),
        ({1: "cat"}, {2: "cat"}, "cat is id 1 in train and 2 in val"),
    ],
)
def test_splits_that_disagree_are_refused(train: dict[int, str], val: dict[int, str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        merge_names(train, val)


def test_splits_may_have_categories_of_their_own() -> None:
    assert merge_names({1: "a", 2: "b"}, {2: "b", 3: "c"}) == {1: "a", 2: "b", 3: "c"}
    assert merge_names({1: "fish", 2: "fish"}, {1: "fish"}) == {1: "fish", 2: "fish"}


def test_duplicate_names_are_told_apart_by_id() -> None:
    assert Classes.of({1: "fish", 2: "fish", 3: "crab"}).labels == {1: "fish (1)", 2: "fish (2)", 3: "crab"}


def test_a_duplicate_id_keeps_its_first_name(tmp_path: Path) -> None:
    root = write_coco(tmp_path, categories={1: "a", 2: "b"})
    edit(root, lambda content: content["categories"].append({"id": 2, "name": "c"}))
    split = read_coco(root, "train")
    assert split.categories == {1: "a", 2: "b"}
    assert "category ids used twice (the first name counts): 1 (2 (b, c))" in map(str, split.flaws.found)


def test_labels_of_both_splits_are_outputs_and_the_ground_truth_keeps_its_ids(tmp_path: Path) -> None:
    root = write_coco(tmp_path, [(64, 48)] * 3, categories={5: "a", 900: "b", 901: "b"})
    edit(root, lambda content: content["categories"].append({"id": 1, "name": "first"}))  # of train only
    train, val = build.build_data(load_config([f"data.root={root}", "data.recipe=tiny"]))
    assert train is not None
    assert train.annotations.labels.tolist() == val.annotations.labels.tolist() == [2, 3, 1]
    assert train[1].target.labels.tolist() == [3]
    assert val.annotations.num_classes == 4
    truth = val.annotations.ground_truth()
    assert truth["categories"] == [
        {"id": 5, "name": "a"},
        {"id": 900, "name": "b (900)"},
        {"id": 901, "name": "b (901)"},
    ]
    assert [one["category_id"] for one in truth["annotations"]] == [900, 901, 5]


# ---- a checkpoint's classes ------------------------------------------------------------------------------------------


def test_half_a_surrogate_pair_in_a_name_is_written_out(tmp_path: Path) -> None:
    root = write_coco(tmp_path, categories={1: "\ud800 cat", 2: "dog"})
    assert read_coco(root, "val").categories == {1: "\\ud800 cat", 2: "dog"}


def test_classes_are_matched_by_name() -> None:
    found = match({1: "dog", 2: "cat", 3: "cow"}, 4, {10: "cat", 11: "horse", 12: "dog"})
    assert (found.by_name, found.pairs) == (True, {1: 12, 2: 10})
    assert found.describe() == (
        "classes: 2 mapped by name; no counterpart in the data: cow; no counterpart in the checkpoint: horse"
    )


def test_duplicate_names_are_matched_by_equal_ids() -> None:
    assert match({1: "fish", 2: "fish"}, 3, {1: "fish", 2: "fish"}).pairs == {1: 1, 2: 2}
    assert match({1: "fish", 2: "fish"}, 3, {1: "fish"}).pairs == {1: 1}
    assert match({1: "fish", 2: "fish"}, 3, {7: "fish"}).pairs == {}


def test_without_names_ids_count() -> None:
    assert match(None, 4, {1: "a", 3: "b", 4: "c"}).pairs == {1: 1, 3: 3}
    found = match({1: "a", 2: "b"}, 3, {1: "1", 2: "2"})
    assert (found.by_name, found.pairs) == (False, {1: 1, 2: 2})
    assert "by id" in found.describe()


def test_a_published_head_has_cocos_names() -> None:
    assert match(None, 91, {1: "dog", 2: "person", 3: "drone"}).pairs == {18: 1, 1: 2}
    assert match(None, 91, coco_names()).pairs == {i: i for i in coco_names()}
    assert match(None, 91, {1: "RBC", 2: "WBC"}).pairs == {1: 1, 2: 2}
    assert not match(None, 91, {1: "RBC"}).by_name
