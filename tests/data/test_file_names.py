"""The names that exports give to images, and the files that they mean."""

from __future__ import annotations

import os
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from fovea_detr.data.file_names import resolve_names
from fovea_detr.errors import DataError

NFC, NFD = (unicodedata.normalize(form, "Größe é.jpg") for form in ("NFC", "NFD"))


def resolved(folder: Path, *names: Any) -> list[Any]:
    content = {"images": [{"file_name": name} for name in names]}
    resolve_names(Path("mine.json"), folder, content)
    return [entry["file_name"] for entry in content["images"]]


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("on_disk", "name"),
    [
        ("a/x.jpg", "a\\x.jpg"),
        ("a/x.jpg", "a//x.jpg"),
        ("a/x.jpg", "./a/./x.jpg"),
        ("a/x.jpg", ".\\a\\\\x.jpg"),
        ("my image.jpg", "my%20image.jpg"),
        ("my%20image.jpg", "my image.jpg"),
        ("a/x.jpg", "a%2Fx.jpg"),
        ("a b/größe.jpg", "a%20b/gr%C3%B6%C3%9Fe.jpg"),
        (NFC, NFD),
        (NFD, NFC),
        ("x.JPG", "x.jpg"),
        ("x.jpg", "x.JPG"),
        ("x.jpg", "images/x.jpg"),
        ("x.jpg", "images\\x.jpg"),
        ("x.jpg", "images\\1/x.jpg"),
        ("1/x.jpg", "images\\1/x.jpg"),
        ("x.jpg", "/home/me/photos/x.jpg"),
        ("x.jpg", "C:\\Users\\me\\x.jpg"),
        ("x.jpg", "../../label-studio/data/media/upload/1/x.jpg"),
        ("x.jpg", "..\\..\\label-studio\\label-studio\\media\\upload\\4\\x.jpg"),
        ("my image.jpg", "/data/upload/1/my%20image.jpg"),
        ("x.jpg", "s3://bucket/photos/x.jpg"),
        ("a/x.jpg", "b/../a/x.jpg"),
    ],
)
def test_a_name_in_another_form(tmp_path: Path, on_disk: str, name: str) -> None:
    folder = touch(tmp_path / "images", on_disk, "other.jpg", "b/other.jpg")
    assert resolved(folder, name, "other.jpg") == [on_disk, "other.jpg"]


@pytest.mark.parametrize("name", ["x.jpg", "a/x.jpg", "a\\x.jpg", "100%.jpg", "%20.jpg", NFD, "[x] (1).jpg"])
def test_a_file_of_that_name_wins_over_all_that_look_like_it(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, "X.JPG", "A/X.jpg", " .jpg", NFC)
    assert resolved(tmp_path, name) == [name]


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (("X.jpg", "x.JPG"), "x.jpg"),
        (("a b.jpg", "A B.jpg"), "a%20b.jpg"),
        ((NFC, NFD), unicodedata.normalize("NFC", "größe %C3%A9.jpg")),
        (("1/x.jpg", "x.jpg"), "/data/upload/1/x.jpg"),
        (("A/x.jpg", "a/x.jpg"), "a//X.jpg"),
    ],
)
def test_two_files_that_fit_are_both_named(tmp_path: Path, files: tuple[str, str], name: str) -> None:
    with pytest.raises(DataError) as caught:
        resolved(touch(tmp_path, *files), name)
    assert "\n" not in str(caught.value)
    assert all(f"{tmp_path / file}" in str(caught.value) for file in files)
    assert str(caught.value).startswith(f"mine.json: image {name} may be ")


@pytest.mark.parametrize("names", [("x.jpg", "./x.jpg"), ("1/x.jpg", "2/x.jpg"), ("/a/x.jpg", "/b/x.jpg")])
def test_two_names_of_one_file_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    with pytest.raises(DataError, match=r"^mine.json: images \S+ and \S+ are one file, [^\n]*x.jpg; correct one$"):
        resolved(touch(tmp_path, "x.jpg"), *names)


def test_one_image_that_is_listed_twice_is_left_to_the_checks(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jpg")
    assert resolved(tmp_path, "a//x.jpg", "a//x.jpg", "a/x.png", "a/x.png") == ["a/x.jpg"] * 2 + ["a/x.png"] * 2


@pytest.mark.parametrize(
    "name", ["y.jpg", "sub/x.jpg", "", "sub", ".", "a/b/c/y.jpg", "x.jpg/x.jpg", "\0", 3, None, ["x.jpg"]]
)
def test_a_name_that_fits_nothing_stays(tmp_path: Path, name: Any) -> None:
    """sub/x.jpg too: the folder exists, and x.jpg outside it is another image."""
    touch(tmp_path, "x.jpg", "sub/z.jpg")
    assert resolved(tmp_path, name) == [name]


def test_no_file_outside_the_folder_is_taken(tmp_path: Path) -> None:
    folder = touch(tmp_path, "outside.jpg", "images/x.jpg") / "images"
    names = ["../outside.jpg", str(tmp_path / "outside.jpg"), "..%2Foutside.jpg", "a/../../outside.jpg"]
    for name in names:
        assert not (folder / resolved(folder, name)[0]).exists()


def test_a_content_without_images_is_left_to_the_checks(tmp_path: Path) -> None:
    for content in ([1], {"images": 3}, {"images": [1, {}]}, {}, None):
        resolve_names(Path("mine.json"), tmp_path, content)


def test_a_folder_that_does_not_exist_holds_nothing(tmp_path: Path) -> None:
    assert resolved(tmp_path / "nowhere", "x.jpg") == ["x.jpg"]


def test_each_directory_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = touch(tmp_path, *(f"{d}/{n}.jpg" for d in "abc" for n in range(20)))
    listed: list[str] = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(str(path)) or listdir(path))
    names = [f"{d}\\{n}.JPG" for d in "abc" for n in range(20)]
    assert resolved(folder, *names) == [f"{d}/{n}.jpg" for d in "abc" for n in range(20)]
    assert len(listed) == len(set(listed))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["{}.jpg", "..\\upload\\1\\{}.jpg"])
def test_a_hundred_thousand_names_take_a_second(tmp_path: Path, form: str) -> None:
    folder = touch(tmp_path, *(f"{n:012}.jpg" for n in range(118_287)))
    names = [form.format(f"{n:012}") for n in range(118_287)]
    start = time.process_time()
    assert resolved(folder, *names)[-1] == "000000118286.jpg"
    assert time.process_time() - start < 3  # measured: 0.13 and 1.0 s
