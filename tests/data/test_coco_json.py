"""COCO's json: the fast reader returns the used keys exactly as Python's own does."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from fovea_detr.data.coco_json import Content, Entry, load_coco
from fovea_detr.errors import DataError
from tests.data.test_fuzz import VALUES

STRICT = [value for value in VALUES if not re.search(r"NaN|Infinity|\\ud", json.dumps(value))]


def used(content: Any) -> Any:
    """The slow twin: the whole of it by json.loads, restricted to the keys that are used."""
    return {
        table: [{key: value for key, value in entry.items() if key in Entry.__annotations__} for entry in entries]
        for table, entries in content.items()
        if table in Content.__annotations__
    }


def random_entry(rnd: random.Random) -> dict[str, Any]:
    keys = [*Entry.__annotations__, "segmentation", "license", "attributes"]
    entry = {key: rnd.choice([*STRICT, 1, 2.5, [1.5, 2, 3, 1e-7]]) for key in rnd.sample(keys, 5)}
    return {**entry, "segmentation": [[rnd.random() for _ in range(6)]]}


@pytest.mark.parametrize("seed", range(20))
def test_the_used_keys_are_read_as_python_reads_them(tmp_path: Path, seed: int):
    rnd = random.Random(seed)
    content = {key: [random_entry(rnd) for _ in range(20)] for key in ("images", "annotations", "categories")}
    (tmp_path / "a.json").write_text(json.dumps({**content, "info": {"year": 2017}, "licenses": []}))
    assert repr(load_coco(tmp_path / "a.json")) == repr(used(json.loads((tmp_path / "a.json").read_text())))
    assert "segmentation" not in repr(load_coco(tmp_path / "a.json"))


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [{"id": NaN}], "annotations": []}',
        '{"images": [{"id": 1e400}]}',
        '{"images": ["no object"], "categories": {}}',
        '["a list"]',
        "7",
        '{"images": [{"file_name": "\\ud800"}]}',
    ],
)
def test_anything_else_that_python_reads_is_read_as_a_whole(tmp_path: Path, text: str):
    (tmp_path / "a.json").write_text(text)
    assert repr(load_coco(tmp_path / "a.json")) == repr(json.loads(text))


def test_files_with_a_byte_order_mark_are_read(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"images": []}', encoding="utf-8-sig")
    assert load_coco(tmp_path / "a.json") == {"images": []}


@pytest.mark.parametrize("text", ["", "{", "<html>", "[" * 100_000])
def test_what_is_no_json_is_one_line(tmp_path: Path, text: str):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"^\S*a\.json: not JSON \([^\n]*\); get the annotations again$"):
        load_coco(tmp_path / "a.json")


def test_bytes_that_are_no_utf8_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "latin1.json"
    path.write_bytes('{"categories": [{"id": 1, "name": "caf\u00e9"}]}'.encode("latin1"))
    with pytest.raises(DataError, match=r"latin1\.json: not JSON \('utf-8' codec[^\n]*get the annotations again$"):
        load_coco(path)


def test_what_another_file_is_shows_in_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "pointer.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    with pytest.raises(DataError, match=r"not JSON \(it begins with 'version https://git-lfs"):
        load_coco(path)
