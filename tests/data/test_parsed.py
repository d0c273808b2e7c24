"""Annotations that were parsed once: what a later start maps equals what parsing returns, and is never stale."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fovea_detr.data import parsed, readers
from fovea_detr.data.annotations import CocoSplit
from fovea_detr.data.layouts import Source
from fovea_detr.machine import mapped


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return a == b


class Set:
    """Three images, one of them in a folder of its own, two objects; the calls of the parser are counted."""

    def __init__(self, root: Path) -> None:
        self.source, self.cache, self.calls = Source("test", root / "a.json", root / "images", "", None), root / "c", 0
        self.images = [
            {"id": i, "file_name": name, "width": 64, "height": 48}
            for i, name in enumerate(("a.jpg", "b.jpg", "inner/c.jpg"), start=1)
        ]
        for one in self.images:
            path = self.source.images / one["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 48)).save(path)
        self.write([10.0, 10.0, 20.0, 20.0])

    def write(self, box: list[float]) -> None:
        objects = [{"id": i, "image_id": i, "category_id": 7, "bbox": box, "iscrowd": 0} for i in (1, 3)]
        content = {"images": self.images, "annotations": objects, "categories": [{"id": 7, "name": "x"}]}
        self.source.annotations.write_text(json.dumps(content))

    def parse(self) -> CocoSplit:
        self.calls += 1
        return readers.read(self.source)

    def read(self) -> CocoSplit:
        return parsed.once_parsed(self.source, partial(self.parse), self.cache)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Set:
    monkeypatch.setattr(parsed, "SMALLEST_BYTES", 0)
    return Set(tmp_path)


def test_the_second_start_parses_nothing_and_reads_the_same(data: Set) -> None:
    first, second = data.read(), data.read()
    assert data.calls == 1
    assert same(first, second)
    assert same(second, readers.read(data.source))


def test_what_is_read_may_be_changed_and_the_file_keeps_it(data: Set) -> None:
    data.read()
    data.read().boxes_xyxy[:] = 0
    assert data.read().boxes_xyxy.any()
    assert data.calls == 1


def test_other_annotations_are_parsed_again(data: Set) -> None:
    data.read()
    data.write([1.0, 2.0, 3.0, 4.0])
    assert data.read().objects.boxes_xywh[0].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert len(list(data.cache.iterdir())) == 1


@pytest.mark.parametrize("name", ["b.jpg", "inner/c.jpg"])
def test_an_image_that_is_gone_or_has_become_empty_is_found(data: Set, name: str) -> None:
    data.read()
    (data.source.images / name).write_bytes(b"")
    assert [flaw.count for flaw in data.read().flaws.found] == [1]
    (data.source.images / name).unlink()
    assert [flaw.count for flaw in data.read().flaws.found] == [1]
    assert data.calls == 3


@pytest.mark.parametrize("damage", [b"", b"\x05", b"not a file of ours" * 9, None])
def test_a_damaged_file_is_parsed_again(data: Set, damage: bytes | None) -> None:
    first = data.read()
    (path,) = data.cache.iterdir()
    path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    assert same(data.read(), first)
    assert same(data.read(), first)
    assert data.calls == 2


def test_without_a_place_to_write_every_start_parses(data: Set) -> None:
    data.cache.write_text("a file where the folder should be")
    assert same(data.read(), data.read())
    assert data.calls == 2


def test_small_files_leave_nothing_behind(data: Set, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    data.read()
    assert not data.cache.exists()


def test_mapped_values_survive_their_file(tmp_path: Path) -> None:
    value = {"a": np.arange(1000.0), "empty": np.zeros((0, 4), np.float32), "t": np.arange(6).reshape(2, 3).T, "s": "x"}
    path = tmp_path / "folder" / "value"
    mapped.write(value, path)
    found = mapped.read(path)
    shutil.rmtree(path.parent)
    assert found.keys() == value.keys()
    assert all(same(found[name], value[name]) for name in value)
